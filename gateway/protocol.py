"""The wire of `/v1/ws` (docs/wire.md): every frame, `decode` and `encode`, close codes. Sans-I/O.

Longer than our other files because it is the wire's one list: each frame is a few lines of it.
`gateway.lifecycle` has the states of a turn.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import IntEnum, StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, ClassVar

from backends.api import FinishReason, Role  # noqa: TC001 - the codec reads the annotations
from gateway.codec import Frame, Subprotocol, dump, load, pack, unpack
from gateway.errors import ErrorCode, ProtocolError
from personas.persona import Note  # noqa: TC001 - the codec reads the annotations

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from personas.persona import JsonValue

__all__ = [
    "CLIENT_FRAMES",
    "PROTOCOL",
    "RECONNECT",
    "SERVER_FRAMES",
    "ChatDeleted",
    "ChatEvent",
    "ChatOpen",
    "ChatSet",
    "ChatSnapshot",
    "ChatSubscribe",
    "ChatTyping",
    "ChatUnsubscribe",
    "ChatUpdated",
    "ChatUse",
    "ClientFrame",
    "CloseCode",
    "Error",
    "ErrorFrame",
    "Goodbye",
    "Hello",
    "Limits",
    "LiveReply",
    "Message",
    "MessageStatus",
    "PersonaRef",
    "Ping",
    "Place",
    "Pong",
    "ReplyEvent",
    "Stats",
    "Subprotocol",
    "TurnAccepted",
    "TurnCancel",
    "TurnCancelled",
    "TurnCreate",
    "TurnDelta",
    "TurnDone",
    "TurnFailed",
    "TurnStarted",
    "Welcome",
    "choose",
    "decode",
    "encode",
    "utf16_len",
]

PROTOCOL = "persona.v1"

NOTE_CHARS = 4000
"""Longest text about the person, and longest author's note."""
NOTE_DEPTH = 100
"""The deepest place of an author's note, in messages before the end."""


def utf16_len(text: str) -> int:
    """The length in UTF-16 units, which is what browsers count."""
    return len(text) + sum(ch > "\uffff" for ch in text)


# --- values -------------------------------------------------------------------------------------


class MessageStatus(StrEnum):
    """How a message ended."""

    COMPLETE = "complete"
    LENGTH = "length"
    CANCELLED = "cancelled"
    FAILED = "failed"
    INTERRUPTED = "interrupted"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
    """What a reply cost. Times in milliseconds; `ttft_ms` as the gateway saw it.

    `backend` spoke it; empty in what was stored before that was noted.
    """

    ttft_ms: float
    tokens_per_s: float
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    cached_by_tier: Mapping[str, int]
    miss: str
    backend: str = ""
    restore_ms: float = 0.0
    saved_ms: float = 0.0
    differs_at: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One message as people see it; `error` says why a reply failed."""

    id: str
    role: Role
    name: str
    text: str
    turn: str | None
    status: MessageStatus
    stats: Stats | None
    error: Error | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Error:
    """`code` is of `ErrorCode` or `BackendErrorCode`."""

    code: str
    message: str
    retryable: bool
    retry_after_ms: int | None
    detail: Mapping[str, JsonValue]


@dataclass(frozen=True, slots=True, kw_only=True)
class PersonaRef:
    """Who a chat is with."""

    id: str
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveReply:
    """The reply that is being spoken: its text so far, `off` UTF-16 units of it."""

    turn: str
    message: str
    text: str
    off: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a client may send."""

    frame_bytes: int
    text_chars: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A place in a chat's events: everything up to `seq` of `epoch` was seen."""

    epoch: str
    seq: int

    def __post_init__(self) -> None:
        _check(0 < len(self.epoch) <= 64, "d.after.epoch", "1 to 64 characters")
        _check(self.seq >= 0, "d.after.seq", "0 or more")


def _check(ok: bool, field: str, wanted: str) -> None:
    if not ok:
        raise ProtocolError(ErrorCode.BAD_FIELD, f"{field!r} must be {wanted}", field)


def _check_backend(name: str | None) -> None:
    _check(name is None or 1 <= len(name) <= 64, "d.backend", "1 to 64 characters")


def _check_user(name: str | None) -> None:
    plain = name is None or (name.isprintable() and name == name.strip())
    wanted = "1 to 40 printable characters without spaces around them"
    _check(plain and (name is None or 1 <= len(name) <= 40), "d.user", wanted)


def _check_words(about: str | None, note: Note | None, greeting: int | None) -> None:
    most = f"at most {NOTE_CHARS} characters"
    _check(len(about or "") <= NOTE_CHARS, "d.about", most)
    _check(note is None or len(note.text) <= NOTE_CHARS, "d.note.text", most)
    deep = note is None or 0 <= note.depth <= NOTE_DEPTH
    _check(deep, "d.note.depth", f"0 to {NOTE_DEPTH}")
    _check(greeting is None or greeting >= 0, "d.greeting", "0 or more")


def _check_ids(frame: Frame) -> None:
    for f in fields(frame):
        value = getattr(frame, f.name)
        if f.name in ("id", "chat", "turn") and value is not None:
            _check(1 <= len(value) <= 64, f.name, "1 to 64 characters")


# --- client to server ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello(Frame):
    """The first frame. `client` names the program, for the log."""

    T: ClassVar[str] = "hello"
    id: str | None = None
    client: str | None = None

    def __post_init__(self) -> None:
        _check_ids(self)
        _check(len(self.client or "") <= 100, "d.client", "at most 100 characters")


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatOpen(Frame):
    """Starts a chat; `user` is the person's name, `backend` None the server's default.

    `about` is who the person is to the character, `note` the author's note, `greeting` the number
    of the first message.
    """

    T: ClassVar[str] = "chat.open"
    id: str
    persona: str
    user: str = "You"
    about: str = ""
    note: Note | None = None
    greeting: int | None = None
    backend: str | None = None

    def __post_init__(self) -> None:
        _check_ids(self)
        _check_user(self.user)
        _check_words(self.about, self.note, self.greeting)
        _check_backend(self.backend)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatSubscribe(Frame):
    """Watches a chat, from `after` on if the server still has that."""

    T: ClassVar[str] = "chat.subscribe"
    id: str
    chat: str
    after: Place | None = None

    def __post_init__(self) -> None:
        _check_ids(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatUnsubscribe(Frame):
    """Stops watching; the chat goes on."""

    T: ClassVar[str] = "chat.unsubscribe"
    id: str | None = None
    chat: str

    def __post_init__(self) -> None:
        _check_ids(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatTyping(Frame):
    """The person types: a reply will be asked for soon. A hint, without an answer."""

    T: ClassVar[str] = "chat.typing"
    id: str | None = None
    chat: str

    def __post_init__(self) -> None:
        _check_ids(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatUse(Frame):
    """Chooses who speaks in a chat from the next turn on."""

    T: ClassVar[str] = "chat.use"
    id: str
    chat: str
    backend: str

    def __post_init__(self) -> None:
        _check_ids(self)
        _check_backend(self.backend)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatSet(Frame):
    """Changes what is given of a chat: who the person is, the author's note, the greeting."""

    T: ClassVar[str] = "chat.set"
    id: str
    chat: str
    user: str | None = None
    about: str | None = None
    note: Note | None = None
    greeting: int | None = None

    def __post_init__(self) -> None:
        _check_ids(self)
        _check_user(self.user)
        _check_words(self.about, self.note, self.greeting)
        given = (self.user, self.about, self.note, self.greeting)
        _check(any(value is not None for value in given), "d", "an object with something to change")


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnCreate(Frame):
    """Says something; the persona answers."""

    T: ClassVar[str] = "turn.create"
    id: str
    chat: str
    text: str

    def __post_init__(self) -> None:
        _check_ids(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnCancel(Frame):
    """Stops a reply; what was said stays."""

    T: ClassVar[str] = "turn.cancel"
    id: str | None = None
    chat: str
    turn: str

    def __post_init__(self) -> None:
        _check_ids(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ping(Frame):
    """Is the line alive?"""

    T: ClassVar[str] = "ping"
    id: str | None = None
    n: int

    def __post_init__(self) -> None:
        _check_ids(self)


ClientFrame = (
    Hello
    | ChatOpen
    | ChatSubscribe
    | ChatUnsubscribe
    | ChatTyping
    | ChatUse
    | ChatSet
    | TurnCreate
    | TurnCancel
    | Ping
)


# --- server to client ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Welcome(Frame):
    """The answer to `hello`."""

    T: ClassVar[str] = "welcome"
    re: str | None = None
    session: str
    server: str
    protocol: str
    heartbeat_ms: int
    limits: Limits


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatSnapshot(Frame):
    """The whole chat as of `seq`."""

    T: ClassVar[str] = "chat.snapshot"
    re: str | None = None
    chat: str
    epoch: str
    seq: int
    persona: PersonaRef
    user: str
    about: str
    note: Note | None
    backend: str
    greetings: tuple[Message, ...]
    greeting: int | None
    messages: tuple[Message, ...]
    live: LiveReply | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatEvent(Frame):
    """What all events of a chat carry; the outbox fills in `epoch` and `seq`."""

    re: str | None = None
    chat: str
    epoch: str | None = None
    seq: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatUpdated(ChatEvent):
    """Somebody changed something: what of a chat can be changed, as it is now.

    `greetings` are the first messages to choose from, `greeting` the number of the chosen one;
    empty and None as soon as more was said.
    """

    T: ClassVar[str] = "chat.updated"
    user: str
    about: str
    note: Note | None
    backend: str
    greetings: tuple[Message, ...]
    greeting: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatDeleted(ChatEvent):
    """The chat is gone, and all that was said in it. Nothing follows."""

    T: ClassVar[str] = "chat.deleted"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplyEvent(ChatEvent):
    """What all events of a turn carry."""

    turn: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnAccepted(ReplyEvent):
    """The user's message is on disk; the reply will have the id `reply_id`."""

    T: ClassVar[str] = "turn.accepted"
    user_message: Message
    reply_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnStarted(ReplyEvent):
    """A backend has the turn."""

    T: ClassVar[str] = "turn.started"
    backend: str
    model: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnDelta(ReplyEvent):
    """More text; `off` UTF-16 units of the reply came before it."""

    T: ClassVar[str] = "turn.delta"
    off: int
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnDone(ReplyEvent):
    """Terminal: the reply came to its end."""

    T: ClassVar[str] = "turn.done"
    reason: FinishReason
    message: Message


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnCancelled(ReplyEvent):
    """Terminal: someone stopped it."""

    T: ClassVar[str] = "turn.cancelled"
    message: Message


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnFailed(ReplyEvent):
    """Terminal: it broke; the partial text stays."""

    T: ClassVar[str] = "turn.failed"
    error: Error
    message: Message


@dataclass(frozen=True, slots=True, kw_only=True)
class Pong(Frame):
    """The answer to `ping`."""

    T: ClassVar[str] = "pong"
    re: str | None = None
    n: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorFrame(Frame):
    """A request was refused; `chat` is the one that it named, if it named one."""

    T: ClassVar[str] = "error"
    re: str | None = None
    chat: str | None = None
    code: str
    message: str
    retryable: bool
    retry_after_ms: int | None
    detail: Mapping[str, JsonValue]


@dataclass(frozen=True, slots=True, kw_only=True)
class Goodbye(Frame):
    """The server is about to close; come back after `after_ms`."""

    T: ClassVar[str] = "goodbye"
    reason: str
    after_ms: int


CLIENT_FRAMES: Mapping[str, type[Frame]] = MappingProxyType(
    {
        cls.T: cls
        for cls in (
            *(Hello, ChatOpen, ChatSubscribe, ChatUnsubscribe, ChatTyping),
            *(ChatUse, ChatSet, TurnCreate, TurnCancel, Ping),
        )
    }
)
SERVER_FRAMES: Mapping[str, type[Frame]] = MappingProxyType(
    {
        cls.T: cls
        for cls in (
            *(Welcome, ChatSnapshot, ChatUpdated, ChatDeleted, TurnAccepted, TurnStarted),
            *(TurnDelta, TurnDone, TurnCancelled, TurnFailed, Pong, ErrorFrame, Goodbye),
        )
    }
)


def choose(offered: Sequence[str]) -> Subprotocol | None:
    """The first offered subprotocol that we speak."""
    return next((Subprotocol(name) for name in offered if name in set(Subprotocol)), None)


def decode(
    data: str | bytes, subprotocol: Subprotocol, known: Mapping[str, type[Frame]] = CLIENT_FRAMES
) -> Frame:
    """One WebSocket message as a frame of the `known` types (a server's: the client frames).

    Raises `UnreadableFrame` when it is no JSON or msgpack, else `ProtocolError` naming the field.
    """
    return load(unpack(data, subprotocol), known)


def encode(frame: Frame, subprotocol: Subprotocol) -> str | bytes:
    """The frame as one WebSocket message: text for JSON, binary for msgpack."""
    return pack(dump(frame), subprotocol)


# --- close codes --------------------------------------------------------------------------------


class CloseCode(IntEnum):
    """Why a socket is closed."""

    NORMAL = 1000
    GOING_AWAY = 1001
    BAD_FRAME = 4001
    HELLO_TIMEOUT = 4002
    ORIGIN_REFUSED = 4004
    NO_SUBPROTOCOL = 4005
    SLOW_READER = 4006
    DRAINING = 4009


RECONNECT: Mapping[CloseCode, bool] = MappingProxyType(
    {
        CloseCode.NORMAL: False,
        CloseCode.GOING_AWAY: True,
        CloseCode.BAD_FRAME: False,
        CloseCode.HELLO_TIMEOUT: True,
        CloseCode.ORIGIN_REFUSED: False,
        CloseCode.NO_SUBPROTOCOL: False,
        CloseCode.SLOW_READER: True,
        CloseCode.DRAINING: True,
    }
)
"""Whether a client may come back by itself."""
