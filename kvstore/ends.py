"""Which prefixes end in a stored block: the index that a look-up begins with.

Rolling value -> the prefixes that have it. Nearly always one; two only by collision, and both are
compared by their digests.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Container, Iterable, Sequence

    from kvstore.api import BlockKey, PrefixKey, Tier

__all__ = ["Ends"]

SLACK = 4096


class Ends:
    """The ends of what `tiers` hold, and of some that they have evicted since; thread-safe."""

    def __init__(self, tiers: Sequence[Tier]) -> None:
        self._tiers = tuple(tiers)
        self._lock = threading.Lock()
        self._ends: dict[int, set[PrefixKey]] = {}
        self._known = 0
        self._fresh: set[PrefixKey] = set()  # learned since the last rebuild began
        self._rebuild_at = 0
        self.rebuild(())

    @property
    def is_stale(self) -> bool:
        """Whether there may be as many evicted ends as held ones."""
        return self._known > self._rebuild_at

    def values(self) -> Container[int]:
        """The rolling values that are known now."""
        return self._ends

    def has(self, prefix: PrefixKey) -> bool:
        """Whether exactly this prefix is known."""
        # No lock: the dictionary is replaced as a whole, and a single look-up is atomic.
        return prefix in self._ends.get(prefix.rolling, ())

    def learn(self, prefixes: Iterable[PrefixKey]) -> None:
        """Blocks that end in these are about to be stored."""
        with self._lock:
            for prefix in prefixes:
                self._fresh.add(prefix)
                ends = self._ends.setdefault(prefix.rolling, set())
                self._known += prefix not in ends
                ends.add(prefix)

    def rebuild(self, pending: Collection[BlockKey]) -> None:
        """Forgets the ends of blocks that every tier has evicted and nobody is about to write."""
        with self._lock:
            self._fresh = set()
        held = {key.prefix for tier in self._tiers for key in tier.held()}
        with self._lock:
            # What was learned meanwhile may have come to a tier after it was asked.
            held |= self._fresh | {key.prefix for key in pending}
            ends: dict[int, set[PrefixKey]] = {}
            for prefix in held:
                ends.setdefault(prefix.rolling, set()).add(prefix)
            self._ends = ends
            self._known = len(held)
            self._rebuild_at = 2 * self._known + SLACK
