"""Tiers in a row behind one face: what the engine calls `PrefixStore`.

    match       finds the longest restorable prefix, in memory
    load        a reader thread brings what the device lacks, straight into the engine's room
    offer       host memory takes blocks at once; a writer thread carries them to the slower tiers
    purge       a scope's blocks leave every tier, in order with the writes

Which lengths are stored is known by the rolling value of every stored block's end, so that one
pass over a chain, longest prefix first, finds message boundaries without being told where they are.
A tier on another machine cannot be looked up so; it is asked while a restore is under way anyway.
"""

from __future__ import annotations

import itertools
import queue
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

import structlog

from kvstore.api import Block, Loaded, Match, StoreStats, Ticket
from kvstore.ends import Ends
from kvstore.flights import Flights
from kvstore.plan import Plan, Planner, Trouble
from kvstore.policy import Policy
from kvstore.writing import Writer

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from kvstore.api import BlockKey, Chain, Layout, Room, Scope, Tier
    from kvstore.host import HostTier

__all__ = ["TieredStore"]

log = structlog.get_logger()

T = TypeVar("T")

QUEUE_BYTES = 256 << 20
CLOSE_SECONDS = 10.0
READERS = 4
SENT = 1 << 17
"""Blocks that are remembered to have gone to the far tiers."""
FAR_LOOKS = 8
"""How many lengths a far tier is asked for in one restore."""


class TieredStore:
    """Implements `kvstore.api.PrefixStore`; owns and closes its tiers.

    `device` is where attention reads, `host` is memory; `slower` come after, fastest first. They
    are written by a thread of this store, from a queue of at most `queue_bytes`.
    """

    def __init__(
        self,
        layout: Layout,
        device: Tier,
        host: HostTier,
        slower: Sequence[Tier] = (),
        *,
        policy: Policy | None = None,
        queue_bytes: int = QUEUE_BYTES,
        close_seconds: float = CLOSE_SECONDS,
    ) -> None:
        self._layout = layout
        self._host = host
        self._tiers: tuple[Tier, ...] = (device, host, *slower)
        self._far = [i for i, tier in enumerate(self._tiers) if not tier.near]
        self._policy = policy or Policy()
        self._close_seconds = close_seconds
        self._bytes_per_token = {g.id: g.bytes_per_token for g in layout.groups}
        self._ends = Ends(self._tiers)
        self._planner = Planner(layout, self._tiers, self._ends)
        self._writer = Writer(tuple(slower), queue_bytes, self._ends)
        self._lock = threading.Lock()  # guards the next two
        self._sent: dict[BlockKey, None] = {}  # touched by the engine's thread alone
        self._flights = Flights()
        self._closed = False
        self._offered = self._refused = 0
        self._tickets = itertools.count(1)
        self._done: queue.SimpleQueue[Loaded] = queue.SimpleQueue()
        self._purged: queue.SimpleQueue[tuple[Ticket, int, str]] = queue.SimpleQueue()
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="kv-reader")

    @property
    def asks_far(self) -> bool:
        """Whether `load` may find more than `match` did."""
        return bool(self._far)

    def match(self, chain: Chain) -> Match:
        """The longest prefix that is worth restoring; see `kvstore.api.PrefixStore`."""
        passed_over = Trouble()
        plan = self._planner.find(chain, passed_over)
        while (slowest := max(plan.tiers.values(), default=0)) > 1:
            passed_over.tiers.add(slowest)
            nearer = self._planner.find(chain, passed_over)
            slow = [key for key, tier in plan.tiers.items() if tier == slowest]
            size = sum(key.tokens * self._bytes_per_token[key.group] for key in slow)
            if self._policy.worth(plan.length - nearer.length, {self._tiers[slowest].name: size}):
                break
            plan = replace(nearer, miss="slow")
        return self._planner.match(plan)

    def load(
        self, match: Match, chain: Chain, room: Room, boundaries: Sequence[int] = ()
    ) -> Ticket:
        """Starts a restore; see `kvstore.api.PrefixStore`."""
        ticket = Ticket(next(self._tickets))
        if self._closed:
            self._done.put(Loaded(ticket, Match(0, miss="closed"), 0.0))
        elif self._far or not self._copied(ticket, match, chain, room):
            self._readers.submit(self._bring, ticket, match, chain, room, tuple(boundaries))
        return ticket

    def poll(self) -> list[Loaded]:
        """Restores that ended since the last call."""
        return _drained(self._done)

    def missing(self, chain: Chain, length: int) -> list[BlockKey]:
        """The blocks that the prefix of `length` tokens needs and host memory does not hold.

        Those that only a slower tier holds are among them: they were restored from there, and
        the next restore should find them nearer.
        """
        needed = self._planner.needed(chain, length)
        return [key for key in needed if not self._host.leading([key])]

    def offer(self, blocks: Sequence[Block]) -> int:
        """Keeps blocks in host memory now and in the slower tiers behind the reply."""
        with self._lock:
            self._offered += len(blocks)
            if self._closed:
                self._refused += len(blocks)
                return 0
        self._ends.learn(block.key.prefix for block in blocks)
        kept = 0
        try:
            kept = self._host.put(blocks)
        except Exception:
            log.exception("kv_write_failed", tier=self._host.name)
        return max(kept, self._queue(blocks))

    def share(self, space: bytes, owner: bytes) -> None:
        """This owner's blocks are the beginning of many chats: they stay longest."""
        self._host.share(space, owner)

    def prefetch(self, chain: Chain, boundaries: Sequence[int] = ()) -> None:
        """Brings what slower tiers hold of the prefix to host memory, behind."""
        if not self._closed:
            self._readers.submit(self._warm, chain, tuple(boundaries))

    def retire(self, space: bytes, owner: bytes) -> None:
        """Somebody left: their blocks are the first to leave memory; the disk has them."""
        self._host.retire(space, owner)
        blocks = (self._host.block(key) for key in self._host.owned(space, owner))
        self._queue([block for block in blocks if block is not None])

    def purge(self, scope: Scope) -> Ticket:
        """Deletes a scope's blocks everywhere, after the writes that are queued."""
        ticket = Ticket(next(self._tickets))
        self._writer.run(lambda: self._purge(ticket, scope))
        return ticket

    def purged(self) -> list[tuple[Ticket, int, str]]:
        """Deletions that ended since the last call."""
        return _drained(self._purged)

    def stats(self) -> StoreStats:
        """A snapshot."""
        dropped, queued = self._writer.counts()
        tiers = tuple(tier.stats() for tier in self._tiers)
        return StoreStats(tiers, self._offered, dropped + self._refused, queued)

    def close(self) -> None:
        """Writes what is queued, for ten seconds at most, and closes the tiers."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        deadline = time.monotonic() + self._close_seconds
        self._readers.shutdown(wait=False, cancel_futures=True)
        if not self._writer.close(deadline):
            # A tier that hangs would hang in its close as well; the process is about to end.
            log.warning("kv_close_abandoned", queued_bytes=self._writer.counts()[1])
            return
        for tier in self._tiers:
            tier.close()

    def _copied(self, ticket: Ticket, match: Match, chain: Chain, room: Room) -> bool:
        """Brings a match that is all in memory at once; False when it is not.

        Such a copy takes less time than another thread takes to begin.
        """
        began = time.perf_counter()
        device = self._tiers[0]
        lacking = [key for key in match.blocks if not device.leading([key])]
        blocks = self._host.blocks(lacking)
        if blocks is None or any(block.ids != _ids(chain, block.key) for block in blocks):
            return False
        buffers = room.take(lacking)
        if buffers is None:
            match = Match(0, miss="no_room")
        else:
            for block, buffer in zip(blocks, buffers, strict=True):
                buffer[:] = block.payload
            self._requeue(blocks)
        self._done.put(Loaded(ticket, match, (time.perf_counter() - began) * 1e3))
        return True

    def _requeue(self, blocks: Sequence[Block]) -> None:
        """What is worth restoring is worth keeping, where a slower tier lacks it by now."""
        keys = [block.key for block in blocks]
        if any(tier.leading(keys) < len(keys) for tier in self._tiers[2:] if tier.near):
            self._queue(blocks, anew=False)

    def _bring(
        self, ticket: Ticket, match: Match, chain: Chain, room: Room, boundaries: tuple[int, ...]
    ) -> None:
        began = time.perf_counter()
        try:
            trouble = Trouble()
            whole = None if self._far else self._straight(match, chain, room, trouble)
            match = whole or self._load(match, chain, room, boundaries, trouble)
        except Exception:
            # A cache may not end a reply, whatever a tier does.
            log.exception("kv_load_failed")
            match = Match(0, miss="damaged")
        self._done.put(Loaded(ticket, match, (time.perf_counter() - began) * 1e3))
        in_memory = zip(match.blocks, match.tiers, strict=True)
        used = (self._host.block(key) for key, tier in in_memory if tier == 1)
        self._requeue([block for block in used if block is not None])

    def _straight(self, match: Match, chain: Chain, room: Room, trouble: Trouble) -> Match | None:
        """The match, brought just as it was found; None where anything is not as it was.

        The common case, which `_load` does as well with more book-keeping.
        """
        lacking = [i for i, tier in enumerate(match.tiers) if tier]
        keys = [match.blocks[i] for i in lacking]
        buffers = room.take(keys)
        if buffers is None:
            return Match(0, miss="no_room")
        planned = [match.tiers[i] for i in lacking]
        for index in sorted(set(planned)):
            part = [i for i, tier in enumerate(planned) if tier == index]
            began = time.perf_counter()
            try:
                ids = self._tiers[index].fetch([keys[i] for i in part], [buffers[i] for i in part])
            except Exception:
                log.exception("kv_read_failed", tier=self._tiers[index].name)
                trouble.tiers.add(index)
                return None
            if any(run != _ids(chain, keys[i]) for i, run in zip(part, ids, strict=True)):
                return None
            size = sum(len(buffers[i]) for i in part)
            seconds = time.perf_counter() - began
            self._policy.observe_restore(self._tiers[index].name, size, seconds)
        return match

    def _load(
        self,
        match: Match,
        chain: Chain,
        room: Room,
        boundaries: tuple[int, ...],
        trouble: Trouble,
    ) -> Match:
        """Brings the match, or more, or the longest prefix that can be had; says what."""
        tiers = dict(zip(match.blocks, match.tiers, strict=True))
        plan = self._further(Plan(match.length, tiers, match.miss), chain, boundaries, trouble)
        have: dict[BlockKey, int] = {}
        while plan.length:
            # What the device holds stays where it is; the engine has pinned it.
            lacking = [key for key, tier in plan.tiers.items() if tier and key not in have]
            buffers = room.take(lacking)
            if buffers is None:
                return Match(0, miss="no_room")
            have |= self._fetch(
                dict(zip(lacking, buffers, strict=True)), plan.tiers, chain, trouble
            )
            bad = [key for key in lacking if key not in have]
            if not bad:
                break
            trouble.keys.update(bad)
            plan = replace(self._planner.find(chain, trouble), miss="damaged")
        served = {key: have.get(key, tier) for key, tier in plan.tiers.items()}
        return self._planner.match(replace(plan, tiers=served))

    def _further(
        self, plan: Plan, chain: Chain, boundaries: tuple[int, ...], trouble: Trouble
    ) -> Plan:
        """A longer prefix that far tiers complete, or `plan`."""
        step, total = self._layout.block_tokens, len(chain.tokens)
        ends = {*boundaries, total - total % step}
        lengths = sorted((n for n in ends if plan.length < n <= total), reverse=True)
        for index in self._far:
            for length in lengths[:FAR_LOOKS]:
                needed = self._planner.needed(chain, length)
                near = {key: self._planner.tier_of(key, trouble) for key in needed}
                lacking = [key for key, tier in near.items() if tier is None]
                try:
                    found = self._tiers[index].leading(lacking)
                except Exception:
                    log.exception("kv_look_failed", tier=self._tiers[index].name)
                    break
                if found == len(lacking):
                    tiers = {key: index if tier is None else tier for key, tier in near.items()}
                    return Plan(length, tiers, "")
        return plan

    def _fetch(
        self,
        buffers: dict[BlockKey, memoryview],
        planned: dict[BlockKey, int],
        chain: Chain,
        trouble: Trouble,
    ) -> dict[BlockKey, int]:
        """Fills the buffers it can with right blocks; says from which tier each came.

        Each tier is asked for what was `planned` from it, and for what faster ones then lacked.
        """
        have: dict[BlockKey, int] = {}
        left = [key for key in buffers if key not in trouble.keys]
        for index, tier in enumerate(self._tiers):
            wanted = [key for key in left if planned[key] <= index]
            if not index or not wanted or index in trouble.tiers:
                continue
            try:
                for at, keys in self._one_flight(index, wanted):
                    if lacking := [key for key in keys if key not in have]:
                        self._fetch_from(at, lacking, buffers, chain, have)
            except Exception:
                log.exception("kv_read_failed", tier=tier.name)
                trouble.tiers.add(index)
            left = [key for key in left if key not in have]
        return have

    def _fetch_from(
        self,
        index: int,
        keys: list[BlockKey],
        buffers: dict[BlockKey, memoryview],
        chain: Chain,
        have: dict[BlockKey, int],
    ) -> None:
        tier = self._tiers[index]
        began = time.perf_counter()
        ids = dict(zip(keys, tier.fetch(keys, [buffers[key] for key in keys]), strict=True))
        right = {key for key, run in ids.items() if run and run == _ids(chain, key)}
        if wrong := [key for key, run in ids.items() if run and key not in right]:
            tier.discard(wrong)
        have |= dict.fromkeys(right, index)
        size = sum(len(buffers[key]) for key in right)
        self._policy.observe_restore(tier.name, size, time.perf_counter() - began)
        if not tier.near and right:
            # Whoever waits for the same flight finds them in memory.
            self._ends.learn(key.prefix for key in right)
            self._host.put([_block(key, buffers[key], chain) for key in keys if key in right])

    def _one_flight(
        self, index: int, wanted: list[BlockKey]
    ) -> Iterator[tuple[int, list[BlockKey]]]:
        """Which tier to ask for what: those that another restore is fetching come last.

        They are in memory by then, unless that restore failed.
        """
        if self._tiers[index].near:
            yield index, wanted  # the page cache makes the second read cheap
            return
        mine, others = self._flights.board(wanted)
        try:
            if mine:
                yield index, mine
        finally:
            self._flights.land(mine)
        for flight in set(others.values()):
            flight.wait(self._close_seconds)
        if others:
            yield 1, list(others)
            yield index, list(others)

    def _warm(self, chain: Chain, boundaries: tuple[int, ...]) -> None:
        try:
            plan = self._further(self._planner.find(chain, Trouble()), chain, boundaries, Trouble())
            lacking = [key for key, tier in plan.tiers.items() if tier > 1]
            sizes = (key.tokens * self._bytes_per_token[key.group] for key in lacking)
            buffers = {k: memoryview(bytearray(n)) for k, n in zip(lacking, sizes, strict=True)}
            have = self._fetch(buffers, plan.tiers, chain, Trouble())
            self._host.put([_block(key, buffers[key], chain) for key in lacking if key in have])
        except Exception:
            log.exception("kv_prefetch_failed")

    def _queue(self, blocks: Sequence[Block], *, anew: bool = True) -> int:
        """Queues what a slower tier lacks; far ones cannot be asked and get what is new."""
        near = [tier for tier in self._tiers[2:] if tier.near]
        lacking = [
            block
            for block in blocks
            if (anew and self._far and self._is_unsent(block.key))
            or any(not tier.leading([block.key]) for tier in near)
        ]
        return self._writer.queue(lacking)

    def _is_unsent(self, key: BlockKey) -> bool:
        """Whether this was not queued for the far tiers lately; remembers that it is now."""
        if key in self._sent:
            return False
        self._sent[key] = None
        if len(self._sent) > SENT:
            del self._sent[next(iter(self._sent))]
        return True

    def _purge(self, ticket: Ticket, scope: Scope) -> None:
        deleted, problem = 0, ""
        for tier in self._tiers:
            try:
                deleted = max(deleted, tier.purge(scope))
            except Exception as error:
                log.exception("kv_purge_failed", tier=tier.name)
                problem = problem or f"{tier.name}: {error}"
        self._ends.rebuild(self._writer.pending())
        self._purged.put((ticket, deleted, problem))


def _ids(chain: Chain, key: BlockKey) -> bytes:
    return chain.ids(key.start, key.prefix.length)


def _block(key: BlockKey, payload: memoryview, chain: Chain) -> Block:
    return Block(key, _ids(chain, key), payload, chain.owner(key))


def _drained(source: queue.SimpleQueue[T]) -> list[T]:
    ended: list[T] = []
    while True:
        try:
            ended.append(source.get_nowait())
        except queue.Empty:
            return ended
