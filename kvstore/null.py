"""The do-nothing twins: the off switch and the baseline."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvstore.api import BlockKey, Loaded, Match, StoreStats, Ticket, TierStats

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kvstore.api import Block, Chain

__all__ = ["NullStore", "NullTier"]


class NullTier:
    """Implements `kvstore.api.Tier`: always empty."""

    name = "null"

    def leading(self, keys: Sequence[BlockKey]) -> int:
        return 0

    def get(self, keys: Sequence[BlockKey]) -> list[Block | None]:
        return [None] * len(keys)

    def put(self, blocks: Sequence[Block]) -> int:
        return 0

    def held(self) -> list[BlockKey]:
        return []

    def discard(self, keys: Sequence[BlockKey]) -> None:
        return None

    def stats(self) -> TierStats:
        return TierStats(self.name)

    def close(self) -> None:
        return None


class NullStore:
    """Implements `kvstore.api.PrefixStore`: every prefix is a miss, nothing is asked for."""

    def match(self, chain: Chain) -> Match:
        return Match(0, miss="cold" if len(chain.tokens) else "")

    def load(self, match: Match, chain: Chain) -> Ticket:
        raise ValueError("nothing was matched, so there is nothing to load")

    def poll(self) -> list[Loaded]:
        return []

    def missing(self, chain: Chain, length: int) -> list[BlockKey]:
        return []

    def offer(self, blocks: Sequence[Block]) -> int:
        return 0

    def stats(self) -> StoreStats:
        return StoreStats()

    def close(self) -> None:
        return None
