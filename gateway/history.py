"""The contract of the durable conversations, its values, and what other rooms see of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from backends.api import Role
from gateway import protocol
from gateway.protocol import MessageStatus
from personas.conversation import ChatMessage, Conversation

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from backends.api import SampledTokens
    from gateway.protocol import Error, Stats
    from personas.persona import JsonValue, Note

__all__ = [
    "Chat",
    "ChatOrigin",
    "ChatSummary",
    "History",
    "StoredMessage",
    "TurnRecord",
    "preview",
]

PREVIEW_CHARS = 120


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredMessage:
    """One node of a chat's tree. `status` None: it is being spoken now.

    `error` says why a reply failed; it is kept with the reply's turn.
    """

    id: str
    parent: str | None
    role: Role
    name: str
    text: str
    turn: str | None = None
    status: MessageStatus | None = MessageStatus.COMPLETE
    stats: Stats | None = None
    error: Error | None = None
    sampled: SampledTokens | None = None

    def wire(self) -> protocol.Message:
        """As people see it; one that is being spoken reads as interrupted."""
        return protocol.Message(
            id=self.id,
            role=self.role,
            name=self.name,
            text=self.text,
            turn=self.turn,
            status=self.status or MessageStatus.INTERRUPTED,
            stats=self.stats,
            error=self.error,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnRecord:
    """An accepted turn; `request` is the client's id, unique in its chat."""

    id: str
    request: str
    user_message: str
    reply: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Chat:
    """One conversation with everything that was said, in the order it was said.

    `about` is who the person is to the character, `note` the author's note. `backend` is the one
    that the person chose; empty: whichever is the server's default.
    """

    id: str
    persona_id: str
    persona_revision: str
    persona_name: str
    user: str
    about: str = ""
    note: Note | None = None
    backend: str = ""
    head: str | None = None
    messages: tuple[StoredMessage, ...] = ()
    turns: tuple[TurnRecord, ...] = ()

    @property
    def greetings(self) -> tuple[StoredMessage, ...]:
        """The first messages to choose from; none as soon as more was said."""
        first = (m.parent is None and m.role is Role.ASSISTANT for m in self.messages)
        return self.messages if all(first) else ()

    @property
    def greeting(self) -> int | None:
        """The number of the greeting that is shown; None as soon as more was said."""
        shown = (number for number, m in enumerate(self.greetings) if m.id == self.head)
        return next(shown, None)

    def message(self, message_id: str) -> StoredMessage:
        """Raises `KeyError`."""
        for message in self.messages:
            if message.id == message_id:
                return message
        raise KeyError(message_id)

    def path(self) -> tuple[StoredMessage, ...]:
        """The line from the first message to the head."""
        by_id = {m.id: m for m in self.messages}
        line: list[StoredMessage] = []
        at = self.head
        while at is not None:
            line.append(by_id[at])
            at = by_id[at].parent
        return tuple(reversed(line))

    def accept(self, record: TurnRecord, user: StoredMessage, reply: StoredMessage) -> Chat:
        """With one more turn, whose reply is the new head."""
        return replace(
            self,
            head=reply.id,
            messages=(*self.messages, user, reply),
            turns=(*self.turns, record),
        )

    def tree(self) -> Conversation:
        """Everything that was said, for an export; an empty reply is one as well."""
        said = (
            ChatMessage(m.id, m.parent, m.role, m.name, m.text, m.sampled) for m in self.messages
        )
        return replace(self.conversation(), messages=tuple(said), head=self.head)

    def settle(self, reply: StoredMessage) -> Chat:
        """With a reply in its final form."""
        return replace(
            self, messages=tuple(reply if m.id == reply.id else m for m in self.messages)
        )

    def conversation(self) -> Conversation:
        """What a prompt is made from: the shown line without the replies that have no text."""
        said: list[ChatMessage] = []
        for m in self.path():
            if m.text:
                parent = said[-1].id if said else None
                said.append(ChatMessage(m.id, parent, m.role, m.name, m.text, m.sampled))
        return Conversation(
            id=self.id,
            persona_id=self.persona_id,
            persona_revision=self.persona_revision,
            user=self.user,
            messages=tuple(said),
            head=said[-1].id if said else None,
            about_user=self.about,
            note=self.note,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatSummary:
    """One line of a list of chats; `updated` in Unix seconds."""

    id: str
    persona_id: str
    persona_name: str
    user: str
    preview: str
    updated: float
    persona_revision: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatOrigin:
    """What the file of an imported chat said besides; see `personas.chatfile.ChatFile`."""

    format: str
    header: Mapping[str, JsonValue]
    lines: tuple[Mapping[str, JsonValue], ...]
    line_of: Mapping[str, int]


def preview(text: str) -> str:
    """The beginning of a message on one line."""
    line = " ".join(text.split())
    return line if len(line) <= PREVIEW_CHARS else line[: PREVIEW_CHARS - 1] + "…"


class History(Protocol):
    """Durable conversations. When a write returns, it is on disk.

    Every method but `aclose` raises `HistoryError` when the store fails; nothing is half written.
    """

    async def create(self, chat: Chat, origin: ChatOrigin | None = None) -> None:
        """Stores a new chat with its first messages, and what its file said besides."""
        ...

    async def origin(self, chat_id: str) -> ChatOrigin | None:
        """What the file of an imported chat said besides; None for all others."""
        ...

    async def pin(self, chat_id: str, revision: str) -> None:
        """Stores with which revision of its persona a chat goes on."""
        ...

    async def load(self, chat_id: str) -> Chat | None:
        """The chat, or None."""
        ...

    async def summaries(self) -> tuple[ChatSummary, ...]:
        """All chats, the newest first."""
        ...

    async def update(self, chat: Chat) -> None:
        """Stores what a person changed: themselves, the note, the backend, the greeting."""
        ...

    async def accept(
        self, chat_id: str, record: TurnRecord, user: StoredMessage, reply: StoredMessage
    ) -> None:
        """Stores a turn: what the person said, and the reply that is to come."""
        ...

    async def checkpoint(self, reply_id: str, text: str) -> None:
        """Stores what was spoken of a reply so far."""
        ...

    async def finish(self, reply: StoredMessage) -> None:
        """Stores a reply in its final form."""
        ...

    async def delete(self, chat_id: str, backends: Sequence[str]) -> None:
        """Deletes a chat and all that was said in it, and notes it for these backends."""
        ...

    async def erase(self, owner: str, backends: Sequence[str]) -> None:
        """Notes for these backends that what they cached of an owner is to go."""
        ...

    async def erasures(self, backend: str) -> tuple[tuple[int, str], ...]:
        """What a backend has yet to delete: number and owner, the oldest first."""
        ...

    async def erased(self, number: int) -> None:
        """Strikes a deletion out."""
        ...

    async def check(self) -> None:
        """Returns when a write would succeed now."""
        ...

    async def aclose(self) -> None:
        """Finishes what was begun. Idempotent."""
        ...
