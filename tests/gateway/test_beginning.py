"""gateway.beginning: how a chat begins, and what may be changed of it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from backends.api import Role
from gateway.beginning import begin, change
from gateway.errors import ErrorCode, ProtocolError, Refused
from gateway.history import Chat, StoredMessage, TurnRecord
from gateway.protocol import ChatOpen, ChatSet
from personas.persona import Note, Persona

WREN = Persona(
    id="wren",
    revision="r",
    name="Wren",
    greeting="Mind the wheel, {{user}}.",
    alternate_greetings=("Flour or gossip?", "Again, {{user}}?"),
)


def opened(greeting: int | None = None, note: Note | None = None, about: str = "") -> Chat:
    frame = ChatOpen(id="a", persona="wren", user="Ann", greeting=greeting, note=note, about=about)
    return begin(frame, WREN, "")


def texts(chat: Chat) -> list[str]:
    return [message.text for message in chat.greetings]


def said(chat: Chat) -> Chat:
    """With one turn in it."""
    record = TurnRecord(id="t", request="q", user_message="u", reply="r")
    user = StoredMessage(id="u", parent=chat.head, role=Role.USER, name="Ann", text="Hi")
    reply = StoredMessage(id="r", parent="u", role=Role.ASSISTANT, name="Wren", text="Ho")
    return chat.accept(record, user, reply)


def test_begins_with_the_first_unless_told() -> None:
    """All greetings are candidates of one message; the author's first or the named one is shown."""
    chat = opened()
    assert texts(chat) == ["Mind the wheel, Ann.", "Flour or gossip?", "Again, Ann?"]
    assert (chat.greeting, chat.path()[0].text) == (0, "Mind the wheel, Ann.")
    assert len(chat.path()) == 1
    assert opened(2).path()[0].text == "Again, Ann?"


def test_person_and_note_reach_the_conversation() -> None:
    """Who the person is and the note go into the prompt's conversation; blank ones are none."""
    conversation = opened(note=Note("Be dry.", 2), about=" a miller\n").conversation()
    assert (conversation.about_user, conversation.note) == ("a miller", Note("Be dry.", 2))
    assert opened(note=Note(" ")).note is None


@pytest.mark.parametrize("number", [3, 99])
def test_no_such_greeting(number: int) -> None:
    """A number beyond the last is refused by its field, at the start and later."""
    chat, later = opened(), ChatSet(id="s", chat="c", greeting=number)
    with pytest.raises(ProtocolError) as at_start:
        opened(number)
    with pytest.raises(ProtocolError) as afterwards:
        change(chat, later, WREN)
    for caught in (at_start, afterwards):
        assert (caught.value.code, caught.value.field) == (ErrorCode.BAD_FIELD, "d.greeting")


def test_only_what_is_given_changes() -> None:
    """What a frame leaves out stays; an empty text takes away what was there."""
    chat = opened(note=Note("Be dry."), about="a miller")
    changed = change(chat, ChatSet(id="s", chat="c", greeting=1), WREN)
    assert changed == replace(chat, head=chat.greetings[1].id)
    assert changed.greeting == 1
    assert change(chat, ChatSet(id="s", chat="c", about=""), WREN) == replace(chat, about="")
    bare = change(chat, ChatSet(id="s", chat="c", note=Note("")), WREN)
    assert bare == replace(chat, note=None)


def test_new_name_stands_in_the_greetings() -> None:
    """Before the first turn a new name is told; what was said later keeps the old one."""
    named = ChatSet(id="s", chat="c", user="Bea", greeting=2)
    changed = change(opened(), named, WREN)
    assert texts(changed) == ["Mind the wheel, Bea.", "Flour or gossip?", "Again, Bea?"]
    assert changed.path()[0].text == "Again, Bea?"
    later = change(said(opened()), ChatSet(id="s", chat="c", user="Bea"), WREN)
    assert later == replace(said(opened()), user="Bea", id=later.id, messages=later.messages)
    assert later.path()[0].text == "Mind the wheel, Ann."


def test_foreign_greetings_stay() -> None:
    """The first message of an imported chat is not told anew."""
    chat = opened()
    foreign = replace(chat, messages=(replace(chat.messages[0], text="Hello, Ann."),))
    assert texts(change(foreign, ChatSet(id="s", chat="c", user="Bea"), WREN)) == ["Hello, Ann."]


def test_greeting_stays_once_more_was_said() -> None:
    """After the first turn another greeting is refused, whatever else the frame changes."""
    chat = said(opened())
    assert (chat.greetings, chat.greeting) == ((), None)
    with pytest.raises(Refused) as caught:
        change(chat, ChatSet(id="s", chat="c", about="a miller", greeting=1), WREN)
    assert caught.value.code is ErrorCode.CHAT_BEGUN
