"""Frames between the gateway's side and the engine process. Pure: no sockets.

    frame     4 bytes length, big-endian, of the body; then the body, one msgpack map
    to the worker     Start first, then Submit, Cancel, Count, Prefetch, Retire, Forget, AskTiers
    to the client     Progress, then Ready or Refused; then Event, Failed, Counted, Forgotten, Tiers

`call` numbers one stream or one count; the client chooses it and never uses it twice on one
connection. The end of the connection is the order to exit. WireError: see there.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgpack

# Field types are read at run time by the codec.
from backends.api import (  # noqa: TC001
    Capabilities,
    Finished,
    TextDelta,
    ThoughtDelta,
    TierCounters,
    Turn,
)
from backends.errors import BackendError, BackendErrorCode
from backends.local.codec import CodecError, plain, read_one_of
from backends.local.settings import EngineSettings  # noqa: TC001

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "MAX_FRAME",
    "AskTiers",
    "Cancel",
    "Count",
    "Counted",
    "Event",
    "Failed",
    "Forget",
    "Forgotten",
    "Frames",
    "Prefetch",
    "Progress",
    "Ready",
    "Refused",
    "Retire",
    "Start",
    "Submit",
    "Tiers",
    "ToClient",
    "ToWorker",
    "WireError",
    "encode",
    "read_to_client",
    "read_to_worker",
]

MAX_FRAME = 32 << 20
"""Bytes of the largest body; a prompt far past any context fits."""

_HEAD = struct.Struct(">I")


class WireError(Exception):
    """A frame that breaks the rules; the connection cannot go on. `problem` says which."""

    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        self.problem = problem


@dataclass(frozen=True, slots=True)
class Start:
    """Load this model and get ready."""

    settings: EngineSettings


@dataclass(frozen=True, slots=True)
class Submit:
    """Speak a turn."""

    call: int
    turn: Turn


@dataclass(frozen=True, slots=True)
class Cancel:
    """Stop a turn; nothing more is sent for it, apart from what is on the way."""

    call: int


@dataclass(frozen=True, slots=True)
class Count:
    """What do these texts cost?"""

    call: int
    texts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Prefetch:
    """This turn, or more, is about to be asked for. No answer."""

    turn: Turn


@dataclass(frozen=True, slots=True)
class Retire:
    """Somebody left this conversation. No answer."""

    tenant: str
    conversation: str


@dataclass(frozen=True, slots=True)
class Forget:
    """Delete the KV of an owner, or with None of the tenant."""

    call: int
    tenant: str
    owner: str | None


@dataclass(frozen=True, slots=True)
class AskTiers:
    """What did the KV tiers do so far?"""

    call: int


@dataclass(frozen=True, slots=True)
class Progress:
    """What the worker is busy with before it is ready, and how far it is."""

    label: str
    done: int
    total: int


@dataclass(frozen=True, slots=True)
class Ready:
    """The engine takes turns."""

    capabilities: Capabilities


@dataclass(frozen=True, slots=True)
class Refused:
    """The engine cannot start, and another try would not change that: one line for people."""

    line: str


@dataclass(frozen=True, slots=True)
class Event:
    """The next event of a stream; nothing follows a `Finished`."""

    call: int
    event: TextDelta | ThoughtDelta | Finished


@dataclass(frozen=True, slots=True)
class Failed:
    """A stream or a count ended with a `BackendError`, field by field."""

    call: int
    code: BackendErrorCode
    message: str
    retryable: bool
    retry_after: float | None
    detail: tuple[tuple[str, int | float | str], ...]

    @classmethod
    def of(cls, call: int, error: BackendError) -> Failed:
        detail = tuple(error.detail.items())
        return cls(call, error.code, error.message, error.retryable, error.retry_after, detail)

    def error(self) -> BackendError:
        return BackendError(
            self.code,
            self.message,
            retryable=self.retryable,
            retry_after=self.retry_after,
            detail=dict(self.detail),
        )


@dataclass(frozen=True, slots=True)
class Counted:
    """The answer to `Count`: one number a text."""

    call: int
    costs: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Forgotten:
    """The answer to `Forget`: how many blocks went."""

    call: int
    blocks: int


@dataclass(frozen=True, slots=True)
class Tiers:
    """The answer to `AskTiers`, fastest tier first."""

    call: int
    tiers: tuple[TierCounters, ...]


ToWorker = Start | Submit | Cancel | Count | Prefetch | Retire | Forget | AskTiers
ToClient = Progress | Ready | Refused | Event | Failed | Counted | Forgotten | Tiers


def encode(message: ToWorker | ToClient) -> bytes:
    """One whole frame. Raises `WireError` when it is too large or cannot be written."""
    try:
        body: bytes = msgpack.packb(plain(message))
    except (CodecError, OverflowError, UnicodeEncodeError) as error:
        raise WireError(f"{type(message).__name__} cannot be written: {error}") from error
    if len(body) > MAX_FRAME:
        raise WireError(f"{type(message).__name__} of {len(body)} bytes; at most {MAX_FRAME}")
    return _HEAD.pack(len(body)) + body


def read_to_worker(body: bytes) -> ToWorker:
    """The message of a frame's body. Raises `WireError`."""
    message = _read((Start, Submit, Cancel, Count, Prefetch, Retire, Forget, AskTiers), body)
    assert isinstance(message, ToWorker)
    return message


def read_to_client(body: bytes) -> ToClient:
    """The message of a frame's body. Raises `WireError`."""
    kinds = (Progress, Ready, Refused, Event, Failed, Counted, Forgotten, Tiers)
    message = _read(kinds, body)
    assert isinstance(message, ToClient)
    return message


def _read(kinds: tuple[type, ...], body: bytes) -> object:
    try:
        raw = msgpack.unpackb(body)
    except (ValueError, UnicodeDecodeError, RecursionError, msgpack.UnpackException) as error:
        raise WireError(f"not msgpack: {error}") from error
    try:
        return read_one_of(kinds, raw, "frame")
    except CodecError as error:
        raise WireError(str(error)) from error


class Frames:
    """Cuts a byte stream into frame bodies."""

    def __init__(self, max_frame: int = MAX_FRAME) -> None:
        self._max_frame = max_frame
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Takes bytes and gives the bodies that are whole now.

        Raises `WireError` as soon as a length is over the limit, before its body arrives.
        """
        self._buffer += data
        at = 0
        try:
            while len(self._buffer) - at >= _HEAD.size:
                (length,) = _HEAD.unpack_from(self._buffer, at)
                if length > self._max_frame:
                    raise WireError(f"frame of {length} bytes; at most {self._max_frame}")
                start, end = at + _HEAD.size, at + _HEAD.size + length
                if len(self._buffer) < end:
                    return
                at = end
                yield bytes(self._buffer[start:end])
        finally:
            del self._buffer[:at]
