"""Blocks in host memory, at most so many bytes, chosen by `kvstore.retention`."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from itertools import groupby
from typing import TYPE_CHECKING

from kvstore.api import Block, TierStats
from kvstore.retention import Retention

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from kvstore.api import BlockKey, Scope

__all__ = ["HostTier"]


class HostTier:
    """Implements `kvstore.api.Tier` in memory, at most `max_bytes` of payload.

    A tenant gets at most `tenant_bytes` of them (0 is no limit). `clock` gives seconds.
    """

    name = "host"
    near = True

    def __init__(
        self,
        max_bytes: int,
        *,
        tenant_bytes: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._lock = threading.Lock()
        self._max_bytes = max_bytes
        self._tenant_bytes = tenant_bytes or max_bytes
        self._clock = clock
        self._held: dict[BlockKey, Block] = {}
        self._bytes = 0
        self._order = Retention()
        self._shared: set[tuple[bytes, bytes]] = set()
        self._counts = TierStats(self.name)
        self._closed = False

    def share(self, space: bytes, owner: bytes) -> None:
        """Says that this owner is many chats' beginning (a persona) and stays longest."""
        with self._lock:
            self._shared.add((space, owner))

    def leading(self, keys: Sequence[BlockKey]) -> int:
        # Without the lock: a look-up is atomic, and any answer may be out of date at once.
        for index, key in enumerate(keys):
            if key not in self._held:
                return index
        return len(keys)

    def fetch(self, keys: Sequence[BlockKey], into: Sequence[memoryview]) -> list[bytes | None]:
        with self._lock:
            found = [self._held.get(key) for key in keys]
            self._order.use((b.key for b in found if b is not None), self._clock())
            hits = sum(block is not None for block in found)
            self._count(hits=hits, misses=len(keys) - hits)
        # Blocks never change: they are copied without holding anybody up.
        ids: list[bytes | None] = []
        for block, buffer in zip(found, into, strict=True):
            if block is None or len(block.payload) != len(buffer):
                ids.append(None)
                continue
            buffer[:] = block.payload
            ids.append(block.ids)
        return ids

    def put(self, blocks: Sequence[Block]) -> int:
        with self._lock:
            for (space, owner), run in groupby(blocks, lambda b: (b.key.prefix.space, b.owner)):
                self._put(space, owner, list(run))
            return sum(block.key in self._held for block in blocks)

    def held(self) -> list[BlockKey]:
        with self._lock:
            return list(self._held)

    def block(self, key: BlockKey) -> Block | None:
        """The block itself, not counted as a use: for whoever copies it to another tier."""
        return self._held.get(key)

    def blocks(self, keys: Sequence[BlockKey]) -> list[Block] | None:
        """All of these blocks, used and counted as hits; None when one is missing."""
        with self._lock:
            try:
                found = [self._held[key] for key in keys]
            except KeyError:
                return None
            self._order.use(keys, self._clock())
            self._count(hits=len(keys))
            return found

    def owned(self, space: bytes, owner: bytes | None) -> list[BlockKey]:
        """The blocks of one owner, or of a tenant."""
        with self._lock:
            return self._order.of(space, owner)

    def retire(self, space: bytes, owner: bytes) -> None:
        """The owner has left: its blocks are the first to go."""
        with self._lock:
            self._order.retire(space, owner)

    def discard(self, keys: Sequence[BlockKey]) -> None:
        with self._lock:
            for key in keys:
                self._drop(key)

    def purge(self, scope: Scope) -> int:
        with self._lock:
            gone = [b.key for b in self._held.values() if scope.holds(b)]
            for key in gone:
                self._drop(key)
            if scope.owner is None:
                self._shared = {s for s in self._shared if s[0] != scope.space}
            else:
                self._shared.discard((scope.space, scope.owner))
            return len(gone)

    def stats(self) -> TierStats:
        with self._lock:
            return replace(self._counts, blocks=len(self._held), bytes=self._bytes)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._held.clear()
            self._order = Retention()
            self._bytes = 0

    def _put(self, space: bytes, owner: bytes, blocks: list[Block]) -> None:
        now = self._clock()
        self._order.use((b.key for b in blocks), now)
        new = {b.key: b for b in blocks if b.key not in self._held}
        for block in self._fitting(space, owner, list(new.values()), now):
            self._held[block.key] = Block(block.key, block.ids, bytes(block.payload), owner)
            size = len(block.payload)
            self._bytes += size
            shared = (space, owner) in self._shared
            self._order.add([block.key], owner, now, cost=size, shared=shared)
            self._count(stored=1)

    def _fitting(self, space: bytes, owner: bytes, new: list[Block], now: float) -> list[Block]:
        """The first of `new` that room could be made for."""
        if self._closed or not new:
            self._count(refused=len(new))
            return []
        size = sum(len(b.payload) for b in new)
        who = (space, owner)
        lacking = self._order.cost_of(space) + size - self._tenant_bytes
        self._evict(self._order.victims(lacking, now, space=space, newcomer=who))
        self._evict(self._order.victims(self._bytes + size - self._max_bytes, now, newcomer=who))
        room = min(self._max_bytes - self._bytes, self._tenant_bytes - self._order.cost_of(space))
        fitting = []
        for block in new:
            room -= len(block.payload)
            if room < 0:
                break
            fitting.append(block)
        self._count(refused=len(new) - len(fitting))
        return fitting

    def _evict(self, keys: list[BlockKey]) -> None:
        for key in keys:
            self._bytes -= len(self._held.pop(key).payload)
        self._count(evicted=len(keys))

    def _drop(self, key: BlockKey) -> None:
        block = self._held.pop(key, None)
        if block is not None:
            self._bytes -= len(block.payload)
            self._order.remove(key)

    def _count(
        self, *, hits: int = 0, misses: int = 0, stored: int = 0, evicted: int = 0, refused: int = 0
    ) -> None:
        c = self._counts
        self._counts = replace(
            c,
            hits=c.hits + hits,
            misses=c.misses + misses,
            stored=c.stored + stored,
            evicted=c.evicted + evicted,
            refused=c.refused + refused,
        )
