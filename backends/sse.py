"""Server-sent events, decoded. Sans-I/O: bytes in, events out.

Source: WHATWG HTML, "Server-sent events", the parts a model's stream uses: `data`, `event`,
comments, and lines that end in CR, LF or CRLF.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Event", "EventTooLong", "SseDecoder"]


class EventTooLong(Exception):
    """The peer sent a line or an event of more than `limit` bytes."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"an event of more than {limit} bytes")
        self.limit = limit


@dataclass(frozen=True, slots=True)
class Event:
    """One event: its data lines joined by newlines."""

    data: str
    event: str = "message"


class SseDecoder:
    """Feed it chunks cut anywhere; it gives the events that are whole.

    However the bytes are cut, the same events come out, and the same error after them.
    """

    def __init__(self, limit: int = 1 << 20) -> None:
        self._limit = limit
        self._rest = bytearray()  # of the line that has not ended
        self._data: list[str] = []
        self._size = 0
        self._event = ""
        self._after_cr = False

    def feed(self, chunk: bytes) -> Iterator[Event]:
        """The events that end in this chunk; exhaust it before the next chunk is fed.

        Raises `EventTooLong` after the events that came before.
        """
        if not chunk:
            return
        if self._after_cr:
            chunk = chunk.removeprefix(b"\n")  # the second half of a CRLF
        self._after_cr = chunk.endswith(b"\r")
        *ended, rest = chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        for piece in ended:
            line = bytes(self._rest) + piece
            self._rest.clear()
            event = self._line(line)
            if event is not None:
                yield event
        self._rest += rest
        self._check(len(self._rest))

    def _line(self, line: bytes) -> Event | None:
        if not line:
            done = Event("\n".join(self._data), self._event or "message") if self._data else None
            self._data, self._size, self._event = [], 0, ""
            return done
        self._check(len(line))
        name, _, value = line.decode(errors="replace").partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            self._data.append(value)
            self._size += len(line)
        elif name == "event":
            self._event = value
        return None

    def _check(self, more: int) -> None:
        if self._size + more > self._limit:
            raise EventTooLong(self._limit)
