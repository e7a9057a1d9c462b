"""A conversation as an immutable tree of messages; saying and rewinding make new ones."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from personas.persona import PersonaError

if TYPE_CHECKING:
    from backends.api import Role, SampledTokens
    from personas.persona import Note

__all__ = ["ChatMessage", "Conversation", "MessageNotFound"]


class MessageNotFound(PersonaError):
    """The conversation has no message of this id."""

    def __init__(self, message_id: str) -> None:
        super().__init__(f"no message {message_id!r} in this conversation")
        self.message_id = message_id


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One node of the tree: what was said after `parent` (None: the first message).

    Siblings are candidates of each other. `sampled` are the ids an engine drew for a reply.
    """

    id: str
    parent: str | None
    role: Role
    name: str
    text: str
    sampled: SampledTokens | None = None


@dataclass(frozen=True, slots=True)
class Conversation:
    """A chat of one user with one persona revision; `head` ends the line that is shown.

    `about_user` is who the user is to the character, `note` the author's note of this chat.
    """

    id: str
    persona_id: str
    persona_revision: str
    user: str
    messages: tuple[ChatMessage, ...] = ()
    head: str | None = None
    about_user: str = ""
    note: Note | None = None

    def find(self, message_id: str) -> ChatMessage:
        """Raises `MessageNotFound`."""
        for message in self.messages:
            if message.id == message_id:
                return message
        raise MessageNotFound(message_id)

    def path(self) -> tuple[ChatMessage, ...]:
        """The line from the first message to the head, in order."""
        by_id = {message.id: message for message in self.messages}
        line: list[ChatMessage] = []
        at = self.head
        while at is not None:
            if at not in by_id:
                raise MessageNotFound(at)
            line.append(by_id[at])
            at = by_id[at].parent
        return tuple(reversed(line))

    def say(self, message: ChatMessage) -> Conversation:
        """Appends below `message.parent` and makes it the head; the other lines stay."""
        if message.parent is not None:
            self.find(message.parent)
        return replace(self, messages=(*self.messages, message), head=message.id)

    def rewind(self, message_id: str | None) -> Conversation:
        """Moves the head to an earlier message (None: before the first); nothing is lost."""
        if message_id is not None:
            self.find(message_id)
        return replace(self, head=message_id)

    def candidates(self, message_id: str) -> tuple[ChatMessage, ...]:
        """The siblings of a message, itself included, oldest first."""
        parent = self.find(message_id).parent
        return tuple(m for m in self.messages if m.parent == parent)
