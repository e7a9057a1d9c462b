"""Small texts that come fast become fewer, larger ones."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Throttle"]


class Throttle:
    """Gives the first text on at once, then what gathered, every `interval` seconds."""

    def __init__(self, give: Callable[[str], None], interval: float) -> None:
        self._give = give
        self._interval = interval
        self._waiting: list[str] = []
        self._timer: asyncio.TimerHandle | None = None

    def add(self, text: str) -> None:
        """Gives the text now or with the next ones."""
        self._waiting.append(text)
        if self._timer is None:
            self._tick()

    def flush(self) -> None:
        """Gives what waits, now, and stops the clock."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._empty()

    def _tick(self) -> None:
        self._timer = None
        if self._waiting:
            self._timer = asyncio.get_running_loop().call_later(self._interval, self._tick)
            self._empty()

    def _empty(self) -> None:
        text = "".join(self._waiting)
        self._waiting.clear()
        if text:
            self._give(text)
