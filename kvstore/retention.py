"""Which block to forget next. Pure: no clock, no bytes, no lock.

Blocks belong to owners (a conversation, a persona revision). What people do next is a property of
an owner, and half a conversation restores nothing, so the victim is chosen in two steps: whose,
then which.

Whose, first to go first:
1. owners that are gone: retired, broken (a block that their newest prefix needs was taken), or
   away for `GONE_AFTER` times their usual pause; longest away first;
2. any owner's leftovers: blocks that its latest visit did not use (old windows, dropped swipes);
3. the owner whose return is furthest off: last visit plus usual pause. Where more conversations
   take turns than fit, least recently used forgets each of them just before it comes back, and
   nothing is ever hit; this keeps those that fit;
4. shared owners (personas), least recently used first; before 3 while they fill over a quarter.

An owner that holds nothing yet makes room only where somebody's return is further off than its
own; one that is there may grow at the cost of others.

Which: the least recently used, and of those used in one visit the furthest from the start.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from kvstore.api import BlockKey

__all__ = ["Retention"]

SAME_VISIT_SECONDS = 2.0
PAUSE_SECONDS = 27.0
"""The median pause of a person between two messages; the guess for an owner seen once."""
GONE_AFTER = 4.0
SHARED_PART = 0.25
STRANGERS = 4096
"""Owners without a block that are remembered at the least."""


@dataclass(slots=True)
class _Owner:
    space: bytes
    shared: bool
    seen: float
    pause: float = PAUSE_SECONDS
    visit: int = 0
    away: bool = False
    """Retired or broken."""
    blocks: dict[int, OrderedDict[BlockKey, int]] = field(default_factory=dict)
    """By group: key -> visit of its last use, least recently used first."""


@dataclass(frozen=True, slots=True)
class _Held:
    owner: tuple[bytes, bytes]
    cost: int


class Retention:
    """The order of leaving. Costs are bytes or slots, whatever the caller counts."""

    def __init__(self) -> None:
        self._owners: dict[tuple[bytes, bytes], _Owner] = {}
        self._held: dict[BlockKey, _Held] = {}
        self._cost = 0
        self._shared_cost = 0
        self._space_cost: dict[bytes, int] = {}
        self._sweep_at = STRANGERS

    def __contains__(self, key: BlockKey) -> bool:
        return key in self._held

    def __len__(self) -> int:
        return len(self._held)

    def cost_of(self, space: bytes) -> int:
        """What one tenant's blocks cost."""
        return self._space_cost.get(space, 0)

    def add(
        self, keys: Sequence[BlockKey], owner: bytes, now: float, *, cost: int, shared: bool = False
    ) -> None:
        """Takes blocks of one owner that are not held yet, at `cost` each, as used now."""
        if not keys:
            return
        space = keys[0].prefix.space
        name = (space, owner)
        whose = self._owners.get(name)
        if whose is None:
            self._forget_strangers()
            whose = self._owners[name] = _Owner(space, shared, now)
        self._visited(whose, now)
        for key in reversed(keys):
            self._held[key] = _Held(name, cost)
            whose.blocks.setdefault(key.group, OrderedDict())[key] = whose.visit
            self._count(whose, cost)

    def use(self, keys: Iterable[BlockKey], now: float) -> None:
        """These were used, together; unknown ones are fine."""
        visitor: tuple[bytes, bytes] | None = None
        for key in reversed(list(keys)):
            held = self._held.get(key)
            if held is None:
                continue
            if held.owner != visitor:
                visitor = held.owner
                whose = self._owners[visitor]
                self._visited(whose, now)
            group = whose.blocks[key.group]
            group[key] = whose.visit
            group.move_to_end(key)

    def remove(self, key: BlockKey) -> None:
        """Forgets a block; unknown ones are fine."""
        held = self._held.pop(key, None)
        if held is None:
            return
        whose = self._owners[held.owner]
        group = whose.blocks[key.group]
        del group[key]
        self._count(whose, -held.cost)
        if not group:
            # The owner stays: how it comes and goes is worth knowing when it is back.
            del whose.blocks[key.group]

    def retire(self, space: bytes, owner: bytes) -> None:
        """The owner has left; a new visit brings it back."""
        if (whose := self._owners.get((space, owner))) is not None:
            whose.away = True

    def of(self, space: bytes, owner: bytes | None) -> list[BlockKey]:
        """Every block of an owner, or of a whole tenant."""
        names = (
            [(space, owner)] if owner is not None else [n for n in self._owners if n[0] == space]
        )
        found = (self._owners[name] for name in names if name in self._owners)
        return [key for whose in found for group in whose.blocks.values() for key in group]

    def victims(
        self,
        needed: int,
        now: float,
        *,
        group: int | None = None,
        space: bytes | None = None,
        newcomer: tuple[bytes, bytes] | None = None,
    ) -> list[BlockKey]:
        """Blocks that cost at least `needed` together, or what there is, and forgets them.

        `group` and `space` narrow the choice to one layer group, one tenant. `newcomer` is the
        (space, owner) that the room is for: its latest visit is spared, and where it holds nothing
        it may get less than it needs.
        """
        taken: list[BlockKey] = []
        bar = (5, 0.0)
        if newcomer is not None:
            own = self._owners.get(newcomer)
            if own is None or not own.blocks:
                bar = (3, -(own.pause if own else PAUSE_SECONDS))
        while needed > 0 and (first := self._first_to_go(now, group, space, newcomer)):
            rank, whose = first
            if rank >= bar:
                break
            spared = rank[0] == 1 or whose is self._owners.get(newcomer or (b"", b""))
            while needed > 0 and (key := _oldest(whose, group)) is not None:
                latest = whose.blocks[key.group][key] == whose.visit
                if latest and spared:
                    break
                needed -= self._held[key].cost
                taken.append(key)
                whose.away |= latest
                self.remove(key)
        return taken

    def _first_to_go(
        self,
        now: float,
        group: int | None,
        space: bytes | None,
        newcomer: tuple[bytes, bytes] | None,
    ) -> tuple[tuple[int, float], _Owner] | None:
        own = self._owners.get(newcomer) if newcomer else None
        ranked = (
            (self._rank(whose, now, group), whose)
            for whose in self._owners.values()
            if (space is None or whose.space == space)
            and (whose.blocks if group is None else group in whose.blocks)
            and (whose is not own or self._has_leftovers(whose, group))
        )
        return min(ranked, key=lambda rw: rw[0], default=None)

    def _has_leftovers(self, whose: _Owner, group: int | None) -> bool:
        key = _oldest(whose, group)
        return key is not None and whose.blocks[key.group][key] != whose.visit

    def _rank(self, whose: _Owner, now: float, group: int | None) -> tuple[int, float]:
        age = now - whose.seen
        if whose.shared:
            crowded = self._shared_cost > SHARED_PART * self._cost
            return (2 if crowded else 4, -age)
        if whose.away or age > GONE_AFTER * whose.pause:
            return (0, -age)
        if self._has_leftovers(whose, group):
            return (1, -age)
        return (3, age - whose.pause)

    def _visited(self, whose: _Owner, now: float) -> None:
        gap = now - whose.seen
        whose.seen = now
        if gap > SAME_VISIT_SECONDS or whose.away:
            whose.visit += 1
            # A long absence says little about the next pause.
            if gap <= GONE_AFTER * whose.pause:
                whose.pause += (gap - whose.pause) / 2
        whose.away = False

    def _forget_strangers(self) -> None:
        if len(self._owners) < self._sweep_at:
            return
        held = {name: whose for name, whose in self._owners.items() if whose.blocks}
        idle = [item for item in self._owners.items() if not item[1].blocks]
        idle.sort(key=lambda nw: nw[1].seen)
        self._owners = held | dict(idle[len(idle) // 2 :])
        self._sweep_at = 2 * len(self._owners) + STRANGERS

    def _count(self, whose: _Owner, cost: int) -> None:
        self._cost += cost
        if whose.shared:
            self._shared_cost += cost
        left = self._space_cost.get(whose.space, 0) + cost
        if left:
            self._space_cost[whose.space] = left
        else:
            self._space_cost.pop(whose.space, None)


def _oldest(whose: _Owner, group: int | None) -> BlockKey | None:
    """The owner's least recently used block, in one group or in the group that has the oldest."""
    groups = whose.blocks.values() if group is None else [whose.blocks.get(group, OrderedDict())]
    firsts = [next(iter(held.items())) for held in groups if held]
    return min(firsts, key=lambda kv: (kv[1], -kv[0].prefix.length), default=(None, 0))[0]
