"""Slots of the device: which are free, who uses them, which blocks they hold. Pure: no bytes.

A slot of a group holds one page: the KV of `block_tokens` tokens from a block boundary on. A page
is filled in order and never rewritten, so one slot can be several blocks at once: those of the
prefixes that end inside it.

    free ── take ──> used (refs > 0) ── release ──> free, or kept if it has names
    kept ── pin ───> used                 kept ── evicted by take ──> used by somebody else
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kvstore.retention import Retention

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from kvstore.api import BlockKey, Scope

__all__ = ["Pool"]


@dataclass(slots=True)
class _Slot:
    refs: int = 0
    owner: bytes = b""
    shared: bool = False
    names: list[BlockKey] = field(default_factory=list)
    """Its blocks, the longest last."""


class Pool:
    """Slots of every group, `slots` of each. Not thread-safe. Times are seconds."""

    def __init__(self, slots: Mapping[int, int]) -> None:
        self._slots = {group: [_Slot() for _ in range(n)] for group, n in slots.items()}
        self._free = {group: list(range(n))[::-1] for group, n in slots.items()}
        self._where: dict[BlockKey, int] = {}
        self._order = Retention()
        self._evicted: list[BlockKey] = []

    def __contains__(self, key: BlockKey) -> bool:
        return key in self._where

    @property
    def names(self) -> list[BlockKey]:
        """Every block that a slot holds."""
        return list(self._where)

    @property
    def used(self) -> int:
        """Slots in use by somebody."""
        return sum(slot.refs > 0 for group in self._slots.values() for slot in group)

    def room(self, group: int) -> int:
        """How many slots `take` could give."""
        return sum(slot.refs == 0 for slot in self._slots[group])

    def size(self, group: int) -> int:
        """How many slots the group has."""
        return len(self._slots[group])

    def take(self, group: int, count: int, now: float) -> list[int] | None:
        """Slots to write, used once each; forgets kept blocks for them.

        None when there are too few.
        """
        free = self._free[group]
        lacking = count - len(free)
        if lacking > 0:
            if count > self.room(group):
                return None
            for key in self._order.victims(lacking, now, group=group):
                index = self._where[key]
                self._evicted += self._slots[group][index].names
                self._clear(group, index)
        taken = [free.pop() for _ in range(count)]
        for index in taken:
            self._slots[group][index].refs = 1
        return taken

    def evicted(self) -> list[BlockKey]:
        """The blocks that `take` has forgotten since the last call."""
        evicted, self._evicted = self._evicted, []
        return evicted

    def where(self, key: BlockKey) -> int | None:
        """The slot of a block, not counted as a use."""
        return self._where.get(key)

    def pin(self, keys: Sequence[BlockKey]) -> list[int] | None:
        """The slots of these blocks, used once more each; None when one is gone."""
        if any(key not in self._where for key in keys):
            return None
        slots = [self._where[key] for key in keys]
        for key, index in zip(keys, slots, strict=True):
            slot = self._slots[key.group][index]
            if not slot.refs:
                self._order.remove(slot.names[-1])
            slot.refs += 1
        return slots

    def release(self, group: int, slots: Sequence[int], now: float) -> list[int]:
        """Uses these once less each; gives those that are free now."""
        freed = []
        kept: dict[tuple[bytes, bool], list[BlockKey]] = {}
        for index in slots:
            slot = self._slots[group][index]
            assert slot.refs > 0, f"slot {index} of group {group} is not in use"
            slot.refs -= 1
            if slot.refs:
                continue
            if slot.names:
                kept.setdefault((slot.owner, slot.shared), []).append(slot.names[-1])
            else:
                self._free[group].append(index)
                freed.append(index)
        for (owner, shared), keys in kept.items():
            self._order.add(keys, owner, now, cost=1, shared=shared)
        return freed

    def name(self, key: BlockKey, index: int, owner: bytes, *, shared: bool = False) -> bool:
        """Says that the slot, which is in use, begins with this block; whether it counts now.

        Not when another slot has the block already, nor when the slot is somebody else's.
        """
        slot = self._slots[key.group][index]
        assert slot.refs > 0
        if key in self._where or (slot.names and slot.owner != owner):
            return self._where.get(key) == index
        slot.owner, slot.shared = owner, shared
        slot.names.append(key)
        if len(slot.names) > 1:
            slot.names.sort(key=lambda name: name.tokens)
        self._where[key] = index
        return True

    def may_append(self, group: int, index: int, tokens: int) -> bool:
        """Whether the slot's user may write behind its first `tokens` tokens.

        Not while somebody else uses it, who may want to do the same, nor over a longer block.
        """
        slot = self._slots[group][index]
        return slot.refs == 1 and (not slot.names or slot.names[-1].tokens <= tokens)

    def retire(self, space: bytes, owner: bytes) -> None:
        """The owner has left: its blocks are the first to go."""
        self._order.retire(space, owner)

    def discard(self, keys: Sequence[BlockKey], now: float) -> list[tuple[int, int]]:
        """Forgets these blocks; gives (group, slot) of those that are free now."""
        freed = []
        for key in keys:
            index = self._where.get(key)
            if index is None:
                continue
            slot = self._slots[key.group][index]
            if slot.refs:
                slot.names.remove(key)
                del self._where[key]
                continue
            self._order.remove(slot.names[-1])
            slot.names.remove(key)
            del self._where[key]
            if slot.names:
                self._order.add([slot.names[-1]], slot.owner, now, cost=1, shared=slot.shared)
            else:
                self._clear(key.group, index)
                freed.append((key.group, index))
        return freed

    def scope(self, scope: Scope) -> list[BlockKey]:
        """The blocks of a scope."""
        return [
            key
            for key, index in self._where.items()
            if key.prefix.space == scope.space
            and scope.owner in (None, self._slots[key.group][index].owner)
        ]

    def _clear(self, group: int, index: int) -> None:
        slot = self._slots[group][index]
        for name in slot.names:
            del self._where[name]
        slot.names.clear()
        self._free[group].append(index)
