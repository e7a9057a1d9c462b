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
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import structlog

from kvstore.api import BlockKey, Loaded, Match, StoreStats, Ticket

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from kvstore.api import Block, Chain, Group, Layout, PrefixKey, Tier

__all__ = ["TieredStore"]

log = structlog.get_logger()

BATCH_BYTES = 8 << 20
QUEUE_BYTES = 256 << 20
CLOSE_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class _Gap:
    """A block that no tier holds: no prefix of `below` tokens or more can be restored."""

    group: Group
    below: int


@dataclass(slots=True)
class _Trouble:
    """What one load has found to be unusable: tiers that failed, blocks that were not right."""

    tiers: set[int] = field(default_factory=set)
    keys: set[BlockKey] = field(default_factory=set)


class TieredStore:
    """Implements `kvstore.api.PrefixStore` over `tiers`, fastest first; owns and closes them.

    The first tier is memory: it is written on the caller's thread. The others are written by a
    thread of this store, from a queue of at most `queue_bytes`.
    """

    def __init__(
        self,
        layout: Layout,
        tiers: Sequence[Tier],
        *,
        queue_bytes: int = QUEUE_BYTES,
        close_seconds: float = CLOSE_SECONDS,
    ) -> None:
        self._layout = layout
        self._tiers = tuple(tiers)
        self._queue_bytes = queue_bytes
        self._close_seconds = close_seconds
        # The likeliest gap first: windows are evicted more often than what everybody shares.
        self._windows_first = sorted(layout.groups, key=lambda g: g.window is None)
        self._bytes_per_token = {g.id: g.bytes_per_token for g in layout.groups}
        self._lock = threading.Lock()  # guards the next eight
        self._ends: dict[int, set[PrefixKey]] = {}
        self._known = 0
        self._fresh: set[PrefixKey] = set()  # learned since the last rebuild began
        self._rebuild_at = 0
        self._pending: set[BlockKey] = set()  # queued or being written
        self._queued = 0  # their bytes
        self._dropped = 0
        self._offered = 0
        self._closed = False
        self._abandoned = False
        self._tickets = itertools.count(1)
        self._done: queue.SimpleQueue[Loaded] = queue.SimpleQueue()
        self._loads: queue.SimpleQueue[tuple[Ticket, Match, Chain] | None] = queue.SimpleQueue()
        self._writes: queue.SimpleQueue[Block | None] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read_ahead, name="kv-reader", daemon=True)
        self._writer = threading.Thread(target=self._write_behind, name="kv-writer", daemon=True)
        self._rebuild_ends()
        self._reader.start()
        self._writer.start()

    def match(self, chain: Chain) -> Match:
        """The longest restorable prefix; see `kvstore.api.PrefixStore`."""
        return self._match(chain, _Trouble())

    def load(self, match: Match, chain: Chain) -> Ticket:
        """Starts a restore; see `kvstore.api.PrefixStore`."""
        ticket = Ticket(next(self._tickets))
        self._loads.put((ticket, match, chain))
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
            for start in self._starts(group, length)
            if self._tier_of(key := self._key(chain, group, start, length)) is None
        ]

    def offer(self, blocks: Sequence[Block]) -> int:
        """Keeps blocks in the first tier now and in the others behind the reply."""
        with self._lock:
            self._offered += len(blocks)
            if self._closed:
                self._dropped += len(blocks)
                return 0
        self._keep(blocks)
        with self._lock:
            for block in blocks:
                self._learn(block.key.prefix)
        return self._enqueue(blocks)

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
        deadline = time.monotonic() + self._close_seconds
        for thread, orders in ((self._reader, self._loads), (self._writer, self._writes)):
            orders.put(None)
            thread.join(max(0.0, deadline - time.monotonic()))
        self._abandoned = True
        if self._reader.is_alive() or self._writer.is_alive():
            # A tier that hangs would hang in its close as well; the process is about to end.
            log.warning("kv_close_abandoned", queued_bytes=self._queued)
            return
        for tier in self._tiers:
            tier.close()

    def _match(self, chain: Chain, trouble: _Trouble) -> Match:
        # No lock: the dictionary is replaced as a whole, and a single look-up is atomic.
        ends = self._ends
        total = len(chain.tokens)
        below = total + 1
        miss = ""
        for length in range(total, 0, -1):
            if length >= below or (known := ends.get(chain.rolling(length))) is None:
                continue
            if chain.key(length) not in known:
                continue  # another prefix with the same rolling value
            plan = self._plan(chain, length, trouble)
            if not isinstance(plan, _Gap):
                return Match(length, tuple(plan), self._by_tier(plan, length), miss)
            below = plan.below
            miss = miss or ("evicted" if plan.group.window is None else "window_evicted")
        return Match(0, miss=miss or ("cold" if total else ""))

    def _plan(self, chain: Chain, length: int, trouble: _Trouble) -> dict[BlockKey, int] | _Gap:
        """The blocks of a prefix with their tiers, in order, or a block that is not there.

        Looks where a gap is likeliest, and cheapest to find, first: most candidates fail.
        """
        floor = length - length % self._layout.block_tokens
        plan: dict[BlockKey, int] = {}
        for group, start in self._likeliest_gaps(length, floor):
            key = self._key(chain, group, start, length)
            tier = self._tier_of(key, trouble)
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

    def _tier_of(self, key: BlockKey, trouble: _Trouble | None = None) -> int | None:
        if trouble and key in trouble.keys:
            return None
        for index, tier in enumerate(self._tiers):
            if not (trouble and index in trouble.tiers) and tier.leading([key]):
                return index
        return None

    def _by_tier(self, plan: dict[BlockKey, int], length: int) -> tuple[tuple[str, int], ...]:
        slowest: dict[int, int] = {}
        for key, tier in plan.items():
            slowest[key.start] = max(tier, slowest.get(key.start, 0))
        counts = [0] * len(self._tiers)
        step = self._layout.block_tokens
        for start, tier in slowest.items():
            counts[tier] += min(start + step, length) - start
        # A model with local layers alone reads no block of the tokens before the window.
        counts[0] += length - sum(counts)
        return tuple((t.name, n) for t, n in zip(self._tiers, counts, strict=True) if n)

    def _read_ahead(self) -> None:
        while (order := self._loads.get()) is not None and not self._closed:
            ticket, match, chain = order
            began = time.perf_counter()
            try:
                match, blocks = self._load(match, chain)
            except Exception:
                # A cache may not end a reply, whatever a tier does.
                log.exception("kv_load_failed")
                match, blocks = Match(0, miss="damaged"), ()
            elapsed = (time.perf_counter() - began) * 1e3
            self._enqueue([b for b in blocks if self._lacks(b.key)])
            self._done.put(Loaded(ticket, match, blocks, elapsed))

    def _load(self, match: Match, chain: Chain) -> tuple[Match, tuple[Block, ...]]:
        """Brings the match, or the longest prefix that can be had; says what it brought."""
        trouble = _Trouble()
        have: dict[BlockKey, tuple[Block, int]] = {}
        while lacking := [key for key in match.blocks if key not in have]:
            have |= self._fetch(lacking, chain, trouble)
            bad = [key for key in lacking if key not in have]
            if not bad:
                break
            trouble.keys.update(bad)
            match = replace(self._match(chain, trouble), miss="damaged")
        plan = {key: have[key][1] for key in match.blocks}
        match = replace(match, by_tier=self._by_tier(plan, match.length))
        return match, tuple(have[key][0] for key in match.blocks)

    def _fetch(
        self, keys: Sequence[BlockKey], chain: Chain, trouble: _Trouble
    ) -> dict[BlockKey, tuple[Block, int]]:
        """The right blocks among what the tiers give, with the tier each came from."""
        have: dict[BlockKey, tuple[Block, int]] = {}
        for index, tier in enumerate(self._tiers):
            wanted = [key for key in keys if key not in have]
            if not wanted or index in trouble.tiers:
                continue
            try:
                got = dict(zip(wanted, tier.get(wanted), strict=True))
                right = {k: b for k, b in got.items() if b and self._is_right(k, b, chain)}
                if wrong := [key for key in wanted if got[key] and key not in right]:
                    tier.discard(wrong)
            except Exception:
                log.exception("kv_read_failed", tier=tier.name)
                trouble.tiers.add(index)
                continue
            have |= {key: (block, index) for key, block in right.items()}
            if index and right:
                self._keep(tuple(right.values()))
        return have

    def _is_right(self, key: BlockKey, block: Block, chain: Chain) -> bool:
        ids = tuple(chain.tokens[key.start : key.prefix.length])
        size = key.tokens * self._bytes_per_token[key.group]
        return block.key == key and block.token_ids == ids and len(block.payload) == size

    def _lacks(self, key: BlockKey) -> bool:
        """Whether a slower tier lacks this block: it was full, or has dropped it since."""
        return any(not tier.leading([key]) for tier in self._tiers[1:])

    def _keep(self, blocks: Sequence[Block]) -> None:
        try:
            self._tiers[0].put(blocks)
        except Exception:
            log.exception("kv_write_failed", tier=self._tiers[0].name)

    def _enqueue(self, blocks: Iterable[Block]) -> int:
        """Queues what fits for the slower tiers; says how many are queued now."""
        queued = 0
        for block in blocks:
            size = len(block.payload)
            with self._lock:
                if block.key in self._pending:
                    queued += 1
                    continue
                if self._queued + size > self._queue_bytes:
                    self._dropped += 1
                    continue
                self._pending.add(block.key)
                self._queued += size
            self._writes.put(block)
            queued += 1
        return queued

    def _learn(self, prefix: PrefixKey) -> None:
        self._fresh.add(prefix)
        ends = self._ends.setdefault(prefix.rolling, set())
        self._known += prefix not in ends
        ends.add(prefix)

    def _rebuild_ends(self) -> None:
        """Forgets the ends of blocks that every tier has evicted."""
        with self._lock:
            self._fresh = set()
        held = {key.prefix for tier in self._tiers for key in tier.held()}
        with self._lock:
            # What was learned meanwhile may have come to a tier after it was asked, and what is
            # queued will.
            held |= self._fresh | {key.prefix for key in self._pending}
            ends: dict[int, set[PrefixKey]] = {}
            for prefix in held:
                ends.setdefault(prefix.rolling, set()).add(prefix)
            self._ends = ends
            self._known = len(held)
            self._rebuild_at = 2 * self._known + 4096

    def _write_behind(self) -> None:
        ended = False
        while not ended and not self._abandoned:
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
                self._pending.difference_update(block.key for block in batch)
                self._queued -= size
                stale = self._known > self._rebuild_at
            if stale:
                self._rebuild_ends()
