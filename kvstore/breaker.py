"""Whether to ask something that has failed lately. Pure: time is passed in.

    closed ── failure ──> open ── pause over ──> half open ── success ──> closed
                           ^                        │
                           └──────── failure ───────┘  the pause doubles

Half open lets one caller through; the others go on without an answer.
"""

from __future__ import annotations

import threading

__all__ = ["Breaker"]

FIRST_PAUSE = 1.0
LONGEST_PAUSE = 60.0


class Breaker:
    """Thread-safe. Seconds of any one monotonic clock."""

    def __init__(
        self, first_pause: float = FIRST_PAUSE, longest_pause: float = LONGEST_PAUSE
    ) -> None:
        self._first_pause = first_pause
        self._longest_pause = longest_pause
        self._lock = threading.Lock()
        self._pause = 0.0  # 0: closed
        self._ask_at = 0.0

    @property
    def is_closed(self) -> bool:
        """Whether nothing has failed since the last success."""
        return self._pause == 0.0

    def allows(self, now: float) -> bool:
        """Whether to try now. After a yes, say `succeeded` or `failed`."""
        with self._lock:
            if self._pause == 0.0:
                return True
            if now < self._ask_at:
                return False
            self._ask_at = now + self._pause  # the others wait for this one's answer
            return True

    def succeeded(self) -> None:
        """It answered: everybody may ask again."""
        with self._lock:
            self._pause = 0.0

    def failed(self, now: float) -> None:
        """It did not: nobody asks for a while, twice as long as the last time."""
        with self._lock:
            self._pause = min(self._longest_pause, max(self._first_pause, 2 * self._pause))
            self._ask_at = now + self._pause
