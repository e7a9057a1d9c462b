"""Restore or recompute: what measured speeds say. Pure: no clock, no I/O.

A restore is worth it while it takes less time than computing the tokens that it saves. Speeds are
moving averages of what was seen; what was never seen gets the benefit of the doubt.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Policy"]

WEIGHT = 0.25
"""What a new observation counts in an average."""
LEAST_BYTES = 1 << 16
"""Restores smaller than this say more about latency than about speed."""
LEAST_TOKENS = 16
SECOND_CHANCE = 1.1
"""What a tier's speed is taken to grow by each time it is passed over: it may have recovered."""
DEADLINE_SECONDS = 5.0
"""How long a restore may take while nobody knows how long computing would."""
LEAST_DEADLINE_SECONDS = 0.05


class Policy:
    """Averages of what restoring and computing cost. Any thread may call; the last word counts."""

    def __init__(self) -> None:
        self._bytes_per_second: dict[str, float] = {}
        self._tokens_per_second: float | None = None

    def observe_restore(self, tier: str, size: int, seconds: float) -> None:
        """A tier gave `size` bytes in so many seconds."""
        if size >= LEAST_BYTES and seconds > 0.0:
            before = self._bytes_per_second.get(tier)
            self._bytes_per_second[tier] = _averaged(before, size / seconds)

    def observe_prefill(self, tokens: int, seconds: float) -> None:
        """The model computed so many prompt tokens in so many seconds."""
        if tokens >= LEAST_TOKENS and seconds > 0.0:
            self._tokens_per_second = _averaged(self._tokens_per_second, tokens / seconds)

    def restore_seconds(self, bytes_by_tier: Mapping[str, int]) -> float:
        """What restoring takes; tiers that nothing is known of count nothing."""
        return sum(
            size / self._bytes_per_second[tier]
            for tier, size in bytes_by_tier.items()
            if tier in self._bytes_per_second
        )

    def prefill_seconds(self, tokens: int) -> float | None:
        """What computing so many tokens takes; None while nothing is known."""
        return None if self._tokens_per_second is None else tokens / self._tokens_per_second

    def worth(self, tokens: int, bytes_by_tier: Mapping[str, int]) -> bool:
        """Whether restoring these bytes beats computing the `tokens` that they save.

        A tier that is passed over is thought a little faster of the next time.
        """
        computing = self.prefill_seconds(tokens)
        if computing is None or self.restore_seconds(bytes_by_tier) <= computing:
            return True
        for tier in bytes_by_tier.keys() & self._bytes_per_second.keys():
            self._bytes_per_second[tier] *= SECOND_CHANCE
        return False

    def deadline(self, tokens: int) -> float:
        """Seconds after which a restore of `tokens` tokens has lost against computing them."""
        computing = self.prefill_seconds(tokens)
        return DEADLINE_SECONDS if computing is None else max(LEAST_DEADLINE_SECONDS, computing)

    def saved_ms(self, tokens: int, restore_ms: float) -> float:
        """What a restore of `tokens` tokens has saved, in milliseconds; 0 while unknown."""
        computing = self.prefill_seconds(tokens)
        return 0.0 if computing is None else max(0.0, computing * 1e3 - restore_ms)


def _averaged(before: float | None, new: float) -> float:
    return new if before is None else before + WEIGHT * (new - before)
