"""Where one restore puts its blocks: slots of the device, filled directly or through a stage."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from kvstore.api import BlockKey
    from kvstore.copies import Stage
    from kvstore.device import DeviceTier

__all__ = ["DeviceRoom"]


class DeviceRoom:
    """Implements `kvstore.api.Room`: slots of the device, one a block.

    A whole block is written where it will be read, on a CPU, or into a stage of pinned memory; a
    shorter one goes through a buffer. `settle` puts everything in its place. Every slot that was
    taken is the caller's to release.
    """

    def __init__(self, tier: DeviceTier) -> None:
        self._tier = tier
        self._short: dict[BlockKey, memoryview] = {}
        self._staged: dict[BlockKey, tuple[Stage, int]] = {}
        """Where a block's page waits: its stage and the row there."""
        self.slots: dict[BlockKey, int] = {}

    def take(self, keys: Sequence[BlockKey]) -> list[memoryview] | None:
        wanted: dict[int, list[BlockKey]] = {}
        for key in keys:
            if key not in self.slots:
                wanted.setdefault(key.group, []).append(key)
        for group, of_group in wanted.items():
            taken = self._tier.take(group, len(of_group))
            if taken is None:
                return None
            self.slots.update(zip(of_group, taken, strict=True))
        self._stage([key for key in keys if key not in self._staged])
        return [self._buffer(key) for key in keys]

    def settle(self, keys: Iterable[BlockKey]) -> None:
        """Moves the blocks that arrived to their pages."""
        placed: dict[Stage, list[tuple[int, int, int]]] = {}
        for key in keys:
            short = self._short.pop(key, None)
            if (staged := self._staged.pop(key, None)) is not None:
                stage, row = staged
                if short is not None:
                    self._tier.spread(key.group, key.tokens, short, stage.page(key.group, row))
                placed.setdefault(stage, []).append((key.group, row, self.slots[key]))
            elif short is not None:
                self._tier.write(key.group, self.slots[key], key.tokens, short)
        for stage, places in placed.items():
            self._tier.bring(stage, places)

    def release(self, keys: Iterable[BlockKey]) -> None:
        """Gives the slots of these back."""
        gone: dict[int, list[int]] = {}
        for key in list(keys):
            if (slot := self.slots.pop(key, None)) is not None:
                gone.setdefault(key.group, []).append(slot)
        for group, slots in gone.items():
            self._tier.release(group, slots)

    def _stage(self, keys: Sequence[BlockKey]) -> None:
        """Makes one stage for all of these, where the device needs one."""
        stage = self._tier.stage(Counter(key.group for key in keys)) if keys else None
        if stage is None:
            return
        rows: Counter[int] = Counter()
        for key in keys:
            self._staged[key] = stage, rows[key.group]
            rows[key.group] += 1

    def _buffer(self, key: BlockKey) -> memoryview:
        if key.tokens == self._tier.layout.block_tokens:
            if (staged := self._staged.get(key)) is not None:
                return staged[0].page(key.group, staged[1]).data
            return self._tier.buffer(key.group, self.slots[key])
        if key not in self._short:
            size = key.tokens * self._tier.bytes_per_token(key.group)
            self._short[key] = memoryview(bytearray(size))
        return self._short[key]
