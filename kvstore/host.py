"""Blocks in host memory: least recently used goes first, each layer group inside its own share.

Without shares, the many small-window blocks that every turn touches would push out the global
blocks of everybody else, or the other way round, and a prefix needs both.

Blocks used in one call age from the last to the first: under pressure a chat loses its tail, and
what is left of it is a shorter prefix, not a tail without a beginning.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import replace
from typing import TYPE_CHECKING

from kvstore.api import TierStats

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kvstore.api import Block, BlockKey, Layout

__all__ = ["HostTier", "group_shares"]

TYPICAL_TOKENS = 4096


def group_shares(layout: Layout, max_bytes: int) -> dict[int, int]:
    """Bytes for each group, in the proportion that a chat of 4,096 tokens needs them."""
    weights = {
        g.id: g.bytes_per_token
        * (
            min(TYPICAL_TOKENS, g.window + layout.block_tokens)
            if g.window is not None
            else TYPICAL_TOKENS
        )
        for g in layout.groups
    }
    total = sum(weights.values()) or 1
    return {group: max_bytes * weight // total for group, weight in weights.items()}


class HostTier:
    """Implements `kvstore.api.Tier` in memory, at most `max_bytes` of payload."""

    name = "host"

    def __init__(self, layout: Layout, max_bytes: int) -> None:
        self._lock = threading.Lock()
        self._room = group_shares(layout, max_bytes)
        self._held: dict[int, OrderedDict[BlockKey, Block]] = {
            g.id: OrderedDict() for g in layout.groups
        }
        self._bytes = dict.fromkeys(self._held, 0)
        self._counts = TierStats(self.name)
        self._closed = False

    def leading(self, keys: Sequence[BlockKey]) -> int:
        with self._lock:
            for index, key in enumerate(keys):
                if key not in self._held.get(key.group, ()):
                    return index
            return len(keys)

    def get(self, keys: Sequence[BlockKey]) -> list[Block | None]:
        with self._lock:
            found = [self._touch(key) for key in reversed(keys)][::-1]
            hits = sum(block is not None for block in found)
            self._count(hits=hits, misses=len(keys) - hits)
            return found

    def put(self, blocks: Sequence[Block]) -> int:
        with self._lock:
            for block in reversed(blocks):
                self._put(block)
            return sum(block.key in self._held.get(block.key.group, ()) for block in blocks)

    def held(self) -> list[BlockKey]:
        with self._lock:
            return [key for group in self._held.values() for key in group]

    def discard(self, keys: Sequence[BlockKey]) -> None:
        with self._lock:
            for key in keys:
                self._drop(key)

    def stats(self) -> TierStats:
        with self._lock:
            blocks = sum(len(group) for group in self._held.values())
            return replace(self._counts, blocks=blocks, bytes=sum(self._bytes.values()))

    def close(self) -> None:
        with self._lock:
            self._closed = True
            for group, held in self._held.items():
                held.clear()
                self._bytes[group] = 0

    def _touch(self, key: BlockKey) -> Block | None:
        group = self._held.get(key.group)
        if group is None or key not in group:
            return None
        group.move_to_end(key)
        return group[key]

    def _put(self, block: Block) -> None:
        key, size = block.key, len(block.payload)
        group = self._held.get(key.group)
        if group is None or self._closed or size > self._room[key.group]:
            self._count(refused=1)
            return
        if key in group:
            group.move_to_end(key)
            return
        while self._bytes[key.group] + size > self._room[key.group]:
            self._drop(next(iter(group)))
            self._count(evicted=1)
        group[key] = block
        self._bytes[key.group] += size
        self._count(stored=1)

    def _drop(self, key: BlockKey) -> None:
        group = self._held.get(key.group)
        if group is not None and key in group:
            self._bytes[key.group] -= len(group.pop(key).payload)

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
