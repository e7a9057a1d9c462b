"""What a person chooses of a chat: how it begins, who they are, the author's note. Pure."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from backends.api import Role
from gateway.errors import ErrorCode, ProtocolError, Refused
from gateway.history import Chat, StoredMessage
from gateway.ids import new_id
from personas.prompt import greetings

if TYPE_CHECKING:
    from gateway.protocol import ChatOpen, ChatSet
    from personas.persona import Note, Persona

__all__ = ["begin", "change"]


def begin(frame: ChatOpen, persona: Persona, backend: str) -> Chat:
    """A new chat with the persona's greetings, candidates of one first message.

    The author's first choice is shown unless the frame names another. Raises `ProtocolError`
    (`bad_field`) when there is no greeting of that number.
    """
    chat_id = new_id("c")
    said = tuple(
        StoredMessage(
            id=new_id("m"), parent=None, role=Role.ASSISTANT, name=persona.speaks_as, text=text
        )
        for text in greetings(persona, user=frame.user, conversation_id=chat_id)
    )
    chat = Chat(
        id=chat_id,
        persona_id=persona.id,
        persona_revision=persona.revision,
        persona_name=persona.name,
        user=frame.user,
        about=frame.about.strip(),
        note=_kept(frame.note),
        backend=backend,
        head=said[0].id if said else None,
        messages=said,
    )
    return chat if frame.greeting is None else _greet(chat, frame.greeting)


def change(chat: Chat, frame: ChatSet, persona: Persona) -> Chat:
    """The chat with what the frame gives; an empty text takes away what was there.

    While nothing but the greeting was said, a new name stands in the greetings too. Raises
    `Refused` (`chat_begun`) for a greeting when more was said, and `ProtocolError` (`bad_field`)
    when there is none of that number.
    """
    if frame.greeting is not None:
        chat = _greet(chat, frame.greeting)
    if frame.user is not None:
        chat = _rename(chat, frame.user, persona)
    if frame.about is not None:
        chat = replace(chat, about=frame.about.strip())
    if frame.note is not None:
        chat = replace(chat, note=_kept(frame.note))
    return chat


def _kept(note: Note | None) -> Note | None:
    return note if note is not None and note.text.strip() else None


def _greet(chat: Chat, number: int) -> Chat:
    if chat.messages and not chat.greetings:
        raise Refused(ErrorCode.CHAT_BEGUN, "the chat has begun; its greeting stays")
    count = len(chat.greetings)
    if number >= count:
        message = f"there are {count} greetings, counted from 0"
        raise ProtocolError(ErrorCode.BAD_FIELD, message, "d.greeting")
    return replace(chat, head=chat.greetings[number].id)


def _rename(chat: Chat, user: str, persona: Persona) -> Chat:
    told = tuple(message.text for message in chat.greetings)
    # Greetings that are not the persona's own, such as those of an imported chat, stay.
    if told and told == greetings(persona, user=chat.user, conversation_id=chat.id):
        texts = greetings(persona, user=user, conversation_id=chat.id)
        if len(texts) == len(told):
            renamed = zip(chat.greetings, texts, strict=True)
            chat = replace(chat, messages=tuple(replace(m, text=text) for m, text in renamed))
    return replace(chat, user=user)
