"""Tiers in a row behind one face: what the engine calls `PrefixStore`.

    match       finds the longest restorable prefix, in memory
    load        a reader thread brings its blocks, promoting them to the first tier
    offer       the first tier takes blocks at once; a writer thread carries them to the others

Which lengths are stored is known by the rolling value of every stored block's end, so that one
pass over a chain, longest prefix first, finds message boundaries without being told where they are.
"""

from __future__ import annotations

import itertools
import queue
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import structlog

from kvstore.api import BlockKey, Loaded, Match, StoreStats, Ticket

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kvstore.api import Block, Chain, Group, Layout, PrefixKey, Tier

__all__ = ["TieredStore"]

log = structlog.get_logger()

BATCH_BYTES = 8 << 20
QUEUE_BYTES = 256 << 20
CLOSE_SECONDS = 10.0


class TieredStore:
    """Implements `kvstore.api.PrefixStore` over `tiers`, fastest first; owns and closes them."""

    def __init__(
        self, layout: Layout, tiers: Sequence[Tier], *, queue_bytes: int = QUEUE_BYTES
    ) -> None:
        self._layout = layout
        self._tiers = tuple(tiers)
        self._queue_bytes = queue_bytes
        self._lock = threading.Lock()  # guards the four below
        self._ends: dict[int, set[PrefixKey]] = {}
        self._known = 0
        self._queued = 0
        self._dropped = 0
        self._offered = 0
        self._closed = False
        self._tickets = itertools.count(1)
        self._done: queue.SimpleQueue[Loaded] = queue.SimpleQueue()
        self._writes: queue.SimpleQueue[Block | None] = queue.SimpleQueue()
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="kv-reader")
        self._writer = threading.Thread(target=self._write_behind, name="kv-writer", daemon=True)
        self._rebuild_ends()
        self._writer.start()

    def match(self, chain: Chain) -> Match:
        """The longest restorable prefix; see `kvstore.api.PrefixStore`."""
        miss = ""
        with self._lock:
            candidates = [
                (length, ends)
                for length in range(len(chain.tokens), 0, -1)
                if (ends := self._ends.get(chain.rolling(length)))
            ]
            # Snapshots: tiers are asked outside the lock.
            candidates = [(length, set(ends)) for length, ends in candidates]
        for length, ends in candidates:
            key = chain.key(length)
            if key not in ends:
                continue  # another prefix with the same rolling value
            plan, lacking = self._plan(chain, length)
            if lacking is None:
                return Match(length, tuple(b for b, _ in plan), self._by_tier(plan, length), miss)
            miss = miss or ("evicted" if lacking.window is None else "window_evicted")
        return Match(0, miss=miss or ("cold" if len(chain.tokens) else ""))

    def load(self, match: Match, chain: Chain) -> Ticket:
        """Starts a restore; see `kvstore.api.PrefixStore`."""
        ticket = Ticket(next(self._tickets))
        self._reader.submit(self._load, ticket, match, chain)
        return ticket

    def poll(self) -> list[Loaded]:
        """Restores that ended since the last call."""
        ended = []
        while True:
            try:
                ended.append(self._done.get_nowait())
            except queue.Empty:
                return ended

    def missing(self, chain: Chain, length: int) -> list[BlockKey]:
        """The blocks that the prefix of `length` tokens needs and no tier holds."""
        return [
            key
            for group in self._layout.groups
            for key in self._needed(chain, length, group)
            if self._tier_of(key) is None
        ]

    def offer(self, blocks: Sequence[Block]) -> int:
        """Keeps blocks in the first tier now and in the others behind the reply."""
        with self._lock:
            self._offered += len(blocks)
            if self._closed:
                self._dropped += len(blocks)
                return 0
            taken = []
            for block in blocks:
                if self._queued + len(block.payload) > self._queue_bytes:
                    self._dropped += 1
                    continue
                self._queued += len(block.payload)
                taken.append(block)
        if taken:
            self._tiers[0].put(taken)
        with self._lock:
            for block in taken:
                self._learn(block.key.prefix)
        for block in taken:
            self._writes.put(block)
        return len(taken)

    def stats(self) -> StoreStats:
        """A snapshot."""
        with self._lock:
            offered, dropped, queued = self._offered, self._dropped, self._queued
        return StoreStats(tuple(t.stats() for t in self._tiers), offered, dropped, queued)

    def close(self) -> None:
        """Writes what is queued, for ten seconds at most, and closes the tiers."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._reader.shutdown(wait=True, cancel_futures=True)
        self._writes.put(None)
        self._writer.join(CLOSE_SECONDS)
        if self._writer.is_alive():
            log.warning("kv_writes_abandoned", queued_bytes=self._queued)
        for tier in self._tiers:
            tier.close()

    def _needed(self, chain: Chain, length: int, group: Group) -> list[BlockKey]:
        step = self._layout.block_tokens
        starts = range(self._layout.first_needed(group, length), length, step)
        return [BlockKey(chain.key(min(s + step, length)), s, group.id) for s in starts]

    def _plan(self, chain: Chain, length: int) -> tuple[list[tuple[BlockKey, int]], Group | None]:
        """The blocks of a prefix with their tiers, or the first group that lacks one."""
        plan: list[tuple[BlockKey, int]] = []
        for group in self._layout.groups:
            for key in self._needed(chain, length, group):
                tier = self._tier_of(key)
                if tier is None:
                    return plan, group
                plan.append((key, tier))
        return plan, None

    def _tier_of(self, key: BlockKey) -> int | None:
        for index, tier in enumerate(self._tiers):
            if tier.leading([key]):
                return index
        return None

    def _by_tier(
        self, plan: Sequence[tuple[BlockKey, int]], length: int
    ) -> tuple[tuple[str, int], ...]:
        slowest: dict[int, int] = {}
        for key, tier in plan:
            slowest[key.start] = max(tier, slowest.get(key.start, 0))
        counts = [0] * len(self._tiers)
        step = self._layout.block_tokens
        for start, tier in slowest.items():
            counts[tier] += min(start + step, length) - start
        # A model with local layers alone reads no block of the tokens before the window.
        counts[0] += length - sum(counts)
        return tuple((t.name, n) for t, n in zip(self._tiers, counts, strict=True) if n)

    def _load(self, ticket: Ticket, match: Match, chain: Chain) -> None:
        began = time.perf_counter()
        blocks: tuple[Block, ...] = ()
        damaged = False
        try:
            while match.length:
                found = self._fetch(match.blocks)
                bad = [k for k, b in found.items() if b is None or not self._is_right(b, chain)]
                if not bad:
                    blocks = tuple(b for b in found.values() if b is not None)
                    break
                damaged = True
                for tier in self._tiers:
                    tier.discard(bad)
                match = self.match(chain)
        except Exception:
            # A cache may not end a reply, whatever a tier does.
            log.exception("kv_load_failed")
            match, damaged = Match(0), True
        if damaged:
            match = Match(match.length, match.blocks, match.by_tier, "damaged")
        elapsed = (time.perf_counter() - began) * 1e3
        self._done.put(Loaded(ticket, match, blocks, elapsed))

    def _fetch(self, keys: Sequence[BlockKey]) -> dict[BlockKey, Block | None]:
        found: dict[BlockKey, Block | None] = dict.fromkeys(keys)
        for index, tier in enumerate(self._tiers):
            wanted = [key for key, block in found.items() if block is None]
            got = [b for b in tier.get(wanted) if b is not None] if wanted else []
            found |= {block.key: block for block in got}
            if index and got:
                self._tiers[0].put(got)
        return found

    def _is_right(self, block: Block, chain: Chain) -> bool:
        key = block.key
        size = next(g.bytes_per_token for g in self._layout.groups if g.id == key.group)
        ids = tuple(chain.tokens[key.start : key.prefix.length])
        return block.token_ids == ids and len(block.payload) == key.tokens * size

    def _learn(self, prefix: PrefixKey) -> None:
        ends = self._ends.setdefault(prefix.rolling, set())
        self._known += prefix not in ends
        ends.add(prefix)

    def _rebuild_ends(self) -> None:
        """Forgets the ends of blocks that every tier has evicted."""
        held = {key.prefix for tier in self._tiers for key in tier.held()}
        with self._lock:
            self._ends = {}
            self._known = 0
            for prefix in held:
                self._learn(prefix)
            self._rebuild_at = 2 * self._known + 4096

    def _write_behind(self) -> None:
        ended = False
        while not ended:
            batch: list[Block] = []
            size = 0
            block = self._writes.get()
            while block is not None:
                batch.append(block)
                size += len(block.payload)
                if size >= BATCH_BYTES or self._writes.empty():
                    break
                block = self._writes.get()
            ended = block is None
            for tier in self._tiers[1:] if batch else ():
                try:
                    tier.put(batch)
                except Exception:
                    log.exception("kv_write_failed", tier=tier.name)
            with self._lock:
                self._queued -= size
                stale = self._known > self._rebuild_at
            if stale:
                self._rebuild_ends()
