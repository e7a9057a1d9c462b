"""Which blocks are being fetched, so that those whom several want cross the network once."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from kvstore.api import BlockKey

__all__ = ["Flights"]


class Flights:
    """Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._flying: dict[BlockKey, threading.Event] = {}

    def board(
        self, wanted: Iterable[BlockKey]
    ) -> tuple[list[BlockKey], dict[BlockKey, threading.Event]]:
        """What the caller shall fetch, and then `land`; and when the others' will have landed."""
        with self._lock:
            others = {key: self._flying[key] for key in wanted if key in self._flying}
            mine = [key for key in wanted if key not in others]
            self._flying |= dict.fromkeys(mine, threading.Event())
            return mine, others

    def land(self, mine: Iterable[BlockKey]) -> None:
        """These have been fetched, or could not be: nobody waits for them any more."""
        with self._lock:
            landed = {self._flying.pop(key) for key in mine}
        for flight in landed:
            flight.set()
