"""Server-sent events, decoded. Sans-I/O: bytes in, events out.

Source: WHATWG HTML, "Server-sent events", the parts a model's stream uses: `data`, `event`,
comments, and lines that end in CR, LF or CRLF.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Event", "EventTooLong", "SseDecoder"]


class EventTooLong(Exception):
    """The peer sent an event of more than `limit` bytes without ending it."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"an event of more than {limit} bytes")
        self.limit = limit


@dataclass(frozen=True, slots=True)
class Event:
    """One event: its data lines joined by newlines."""

    data: str
    event: str = "message"


class SseDecoder:
    """Feed it chunks cut anywhere; it gives the events that are whole."""

    def __init__(self, limit: int = 1 << 20) -> None:
        self._limit = limit
        self._rest = b""
        self._data: list[str] = []
        self._size = 0
        self._event = ""
        self._after_cr = False

    def feed(self, chunk: bytes) -> list[Event]:
        """The events that end in this chunk. Raises `EventTooLong`."""
        if self._after_cr and chunk[:1] == b"\n":
            chunk = chunk[1:]  # the second half of a CRLF
        self._after_cr = chunk[-1:] == b"\r" or (self._after_cr and not chunk)
        raw = self._rest + chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        *lines, self._rest = raw.split(b"\n")
        events = [event for line in lines if (event := self._line(line)) is not None]
        if self._size + len(self._rest) > self._limit:
            raise EventTooLong(self._limit)
        return events

    def _line(self, line: bytes) -> Event | None:
        if not line:
            done = Event("\n".join(self._data), self._event or "message") if self._data else None
            self._data, self._size, self._event = [], 0, ""
            return done
        self._size += len(line)
        if self._size > self._limit:
            raise EventTooLong(self._limit)
        name, _, value = line.decode(errors="replace").partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            self._data.append(value)
        elif name == "event":
            self._event = value
        return None
