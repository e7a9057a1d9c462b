"""Which blocks a prefix needs, where each of them is, and which prefix is the longest to be had.

Nothing here touches bytes: near tiers answer from memory whether they hold a block.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kvstore.api import BlockKey, Match

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from kvstore.api import Chain, Group, Layout, Tier
    from kvstore.ends import Ends

__all__ = ["Plan", "Planner", "Trouble"]


@dataclass(slots=True)
class Trouble:
    """What one load has found to be unusable: tiers that failed, blocks that were not right."""

    tiers: set[int] = field(default_factory=set)
    keys: set[BlockKey] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class Plan:
    """A prefix and the tier of each of its blocks, in the order of the blocks."""

    length: int
    tiers: dict[BlockKey, int]
    miss: str = ""


@dataclass(frozen=True, slots=True)
class _Gap:
    """A block that no tier holds: no prefix of `below` tokens or more can be restored."""

    group: Group
    below: int


class Planner:
    """Looks prefixes up over `tiers`, fastest first, by the ends of what they hold."""

    def __init__(self, layout: Layout, tiers: Sequence[Tier], ends: Ends) -> None:
        self._layout = layout
        self._tiers = tuple(tiers)
        self._ends = ends
        # The likeliest gap first: windows are evicted more often than what everybody shares.
        self._windows_first = sorted(layout.groups, key=lambda g: g.window is None)

    def find(self, chain: Chain, trouble: Trouble) -> Plan:
        """The longest prefix that near tiers hold, leaving out what is in trouble."""
        below = len(chain.tokens) + 1
        miss = ""
        for length in chain.known(self._ends.values()):
            if length >= below or not self._ends.has(chain.key(length)):
                continue  # out of reach, or another prefix with the same rolling value
            plan = self._blocks(chain, length, trouble)
            if not isinstance(plan, _Gap):
                return Plan(length, plan, miss)
            below = plan.below
            miss = miss or ("evicted" if plan.group.window is None else "window_evicted")
        return Plan(0, {}, miss or ("cold" if chain.tokens else ""))

    def _blocks(self, chain: Chain, length: int, trouble: Trouble) -> dict[BlockKey, int] | _Gap:
        """The blocks of a prefix with their tiers, in order, or a block that is not there.

        Looks where a gap is likeliest, and cheapest to find, first: most candidates fail.
        """
        floor = length - length % self._layout.block_tokens
        plan: dict[BlockKey, int] = {}
        for group, start in self._likeliest_gaps(length, floor):
            key = self._key(chain, group, start, length)
            tier = self.tier_of(key, trouble)
            if tier is None:
                # A shorter prefix down to the end of a whole block needs that block as well.
                return _Gap(group, key.prefix.length)
            plan[key] = tier
        return dict(sorted(plan.items(), key=lambda kt: (kt[0].group, kt[0].start)))

    def _likeliest_gaps(self, length: int, floor: int) -> Iterator[tuple[Group, int]]:
        if floor < length:
            for group in self._windows_first:
                yield group, floor
        for group in self._windows_first:
            for start in self._starts(group, floor, self._layout.first_needed(group, length)):
                yield group, start

    def _starts(self, group: Group, length: int, first: int | None = None) -> range:
        """Where the blocks of a prefix of `length` tokens start, from `first` or the needed one."""
        if first is None:
            first = self._layout.first_needed(group, length)
        return range(first, length, self._layout.block_tokens)

    def _key(self, chain: Chain, group: Group, start: int, length: int) -> BlockKey:
        end = min(start + self._layout.block_tokens, length)
        return BlockKey(chain.key(end), start, group.id)

    def needed(self, chain: Chain, length: int) -> list[BlockKey]:
        """The blocks of the prefix of `length` tokens, in order."""
        return [
            self._key(chain, group, start, length)
            for group in self._layout.groups
            for start in self._starts(group, length)
        ]

    def tier_of(self, key: BlockKey, trouble: Trouble) -> int | None:
        """The first near tier that holds a block and is not in trouble."""
        if key in trouble.keys:
            return None
        for index, tier in enumerate(self._tiers):
            if tier.near and index not in trouble.tiers and tier.leading([key]):
                return index
        return None

    def match(self, plan: Plan) -> Match:
        """The plan as the engine sees it."""
        tiers = tuple(plan.tiers.values())
        return Match(plan.length, tuple(plan.tiers), self._by_tier(plan), plan.miss, tiers)

    def _by_tier(self, plan: Plan) -> tuple[tuple[str, int], ...]:
        slowest: dict[int, int] = {}
        for key, tier in plan.tiers.items():
            slowest[key.start] = max(tier, slowest.get(key.start, 0))
        counts = [0] * len(self._tiers)
        step = self._layout.block_tokens
        for start, tier in slowest.items():
            counts[tier] += min(start + step, plan.length) - start
        # A model with local layers alone reads no block of the tokens before the window.
        counts[0] += plan.length - sum(counts)
        return tuple((t.name, n) for t, n in zip(self._tiers, counts, strict=True) if n)
