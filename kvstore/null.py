"""The off switch: a tier and a store that keep nothing."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from kvstore.api import Match, StoreStats, Ticket, TierStats

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kvstore.api import Block, BlockKey, Chain, Loaded, Room, Scope

__all__ = ["NullStore", "NullTier"]


class NullTier:
    """Implements `kvstore.api.Tier`: refuses everything."""

    name = "null"
    near = True

    def leading(self, keys: Sequence[BlockKey]) -> int:
        return 0

    def fetch(self, keys: Sequence[BlockKey], into: Sequence[memoryview]) -> list[bytes | None]:
        return [None] * len(keys)

    def put(self, blocks: Sequence[Block]) -> int:
        return 0

    def held(self) -> list[BlockKey]:
        return []

    def discard(self, keys: Sequence[BlockKey]) -> None:
        return None

    def purge(self, scope: Scope) -> int:
        return 0

    def stats(self) -> TierStats:
        return TierStats(self.name)

    def close(self) -> None:
        return None


class NullStore:
    """Implements `kvstore.api.PrefixStore`: every prefix is a miss, nothing is asked for."""

    asks_far = False

    def __init__(self) -> None:
        self._tickets = itertools.count(1)
        self._purged: list[tuple[Ticket, int, str]] = []

    def match(self, chain: Chain) -> Match:
        return Match(0, miss="cold" if len(chain.tokens) else "")

    def load(
        self, match: Match, chain: Chain, room: Room, boundaries: Sequence[int] = ()
    ) -> Ticket:
        raise ValueError("nothing was matched, so there is nothing to load")

    def poll(self) -> list[Loaded]:
        return []

    def missing(self, chain: Chain, length: int) -> list[BlockKey]:
        return []

    def offer(self, blocks: Sequence[Block]) -> int:
        return 0

    def share(self, space: bytes, owner: bytes) -> None:
        return None

    def prefetch(self, chain: Chain, boundaries: Sequence[int] = ()) -> None:
        return None

    def retire(self, space: bytes, owner: bytes) -> None:
        return None

    def purge(self, scope: Scope) -> Ticket:
        ticket = Ticket(next(self._tickets))
        self._purged.append((ticket, 0, ""))
        return ticket

    def purged(self) -> list[tuple[Ticket, int, str]]:
        ended, self._purged = self._purged, []
        return ended

    def stats(self) -> StoreStats:
        return StoreStats()

    def close(self) -> None:
        return None
