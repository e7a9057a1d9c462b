"""Tiers in a row when something is wrong: forged, broken, slow, full, late."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from kvstore.api import Block, BlockKey, Loaded, Match, Ticket
from kvstore.disk import DiskTier
from kvstore.host import HostTier
from kvstore.keys import TokenChain
from kvstore.null import NullTier
from kvstore.policy import Policy
from kvstore.testing import (
    LAYOUT,
    FailingTier,
    FarTier,
    GatedTier,
    MemoryRoom,
    SlowTier,
    block,
    blocks,
    bring,
    chain,
    check,
    keep,
    settle,
    wait_for,
)
from kvstore.tiered import TieredStore

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import pytest


ROOM = 1 << 20


def test_colliding_rolling_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """With every rolling value forged to be equal, only right prefixes are served."""
    monkeypatch.setattr(TokenChain, "rolling", lambda self, length: 1)
    monkeypatch.setattr(
        TokenChain, "known", lambda self, values: list(range(len(self.tokens), 0, -1))
    )
    real = TokenChain.key
    monkeypatch.setattr(
        TokenChain, "key", lambda self, length: real(self, length)._replace(rolling=1)
    )
    store = TieredStore(LAYOUT, NullTier(), HostTier(ROOM))
    mine, other = chain(range(20)), chain(range(100, 120))
    keep(store, mine, 20)
    assert store.match(other).length == 0
    keep(store, other, 20)
    check(*bring(store, other), other)
    check(*bring(store, mine), mine)
    store.close()


def test_forged_block_is_refused() -> None:
    """A block whose token ids are not the chain's is a miss, is forgotten, and counts as damage."""
    host = HostTier(ROOM)
    store = TieredStore(LAYOUT, NullTier(), host)
    mine = chain(range(20))
    keep(store, mine, 8)
    keep(store, mine, 20)
    victim = next(k for k in host.held() if k.group == 0 and k.start == 8)
    good = block(victim, mine)
    host.discard([victim])
    host.put([Block(victim, bytes(4 * victim.tokens), good.payload)])
    loaded, room = bring(store, mine)
    check(loaded, room, mine)
    assert loaded.match.miss == "damaged"
    assert loaded.match.length == 8
    assert victim not in host.held()
    store.close()


def test_broken_tier_is_a_miss(tmp_path: Path) -> None:
    """A tier that raises costs its blocks and nothing else."""
    disk = FailingTier(DiskTier(tmp_path, ROOM))
    host = HostTier(ROOM)
    store = TieredStore(LAYOUT, NullTier(), host, [disk])
    mine = chain(range(30))
    keep(store, mine, 30)
    settle(store)
    host.discard(host.held())
    disk.broken = True
    loaded, _ = bring(store, mine)
    assert loaded.match == Match(0, miss="damaged")
    other = chain(range(60, 90))
    keep(store, other, 30)
    check(*bring(store, other), other)
    store.close()


def test_broken_tier_costs_only_its_blocks(tmp_path: Path) -> None:
    """While the disk fails, what is still in memory is served, and the disk is asked once."""

    class Counting(FailingTier):
        asked = 0

        def fetch(self, keys: Sequence[BlockKey], into: Sequence[memoryview]) -> list[bytes | None]:
            self.asked += 1
            return super().fetch(keys, into)

    disk = Counting(DiskTier(tmp_path, ROOM))
    host = HostTier(ROOM)
    store = TieredStore(LAYOUT, NullTier(), host, [disk])
    mine = chain(range(30))
    for boundary in (16, 20, 30):
        keep(store, mine, boundary)
    settle(store)
    host.discard([k for k in host.held() if k.prefix.length > 16])
    disk.broken = True
    loaded, room = bring(store, mine)
    assert (loaded.match.length, loaded.match.by_tier) == (16, (("host", 16),))
    assert loaded.match.miss == "damaged"
    assert disk.asked == 1
    check(loaded, room, mine)
    disk.broken = False
    assert bring(store, mine)[0].match.length == 30
    store.close()


def test_damage_on_disk_is_told_apart(tmp_path: Path) -> None:
    """After a damaged record the shorter prefix is served, and by the tier that it came from."""
    mine = chain(range(30))
    first = TieredStore(LAYOUT, NullTier(), HostTier(ROOM), [DiskTier(tmp_path, ROOM)])
    for boundary in (16, 24, 30):
        keep(first, mine, boundary)
    first.close()
    disk = DiskTier(tmp_path, ROOM)
    victim = next(k for k in disk.held() if k.group == 0 and k.start == 16)
    disk.discard([victim])
    right = block(victim, mine)
    disk.put([Block(victim, bytes(len(right.ids)), right.payload)])
    second = TieredStore(LAYOUT, NullTier(), HostTier(ROOM), [disk])
    loaded, room = bring(second, mine)
    assert (loaded.match.length, loaded.match.miss) == (16, "damaged")
    assert loaded.match.by_tier == (("disk", 16),)
    check(loaded, room, mine)
    assert victim not in disk.held()
    second.close()


def test_what_a_slower_tier_lacks_is_written_when_used() -> None:
    """A block that the second tier has dropped goes there again when a restore uses it."""
    host, second = HostTier(ROOM), HostTier(ROOM)
    store = TieredStore(LAYOUT, NullTier(), host, [second])
    mine = chain(range(30))
    keep(store, mine, 30)
    settle(store)
    second.discard(second.held())
    check(*bring(store, mine), mine)
    settle(store)
    assert set(second.held()) == set(host.held())
    store.close()


def test_what_is_queued_is_not_queued_again() -> None:
    """A restore that uses blocks which are still on their way to the second tier adds none."""
    second = GatedTier(HostTier(ROOM))
    store = TieredStore(LAYOUT, NullTier(), HostTier(ROOM), [second])
    mine = chain(range(30))
    second.gate.clear()
    keep(store, mine, 30)
    queued = store.stats().queued_bytes
    check(*bring(store, mine), mine)
    assert 0 < store.stats().queued_bytes == queued
    second.gate.set()
    store.close()


def test_full_queue_costs_no_memory_hit() -> None:
    """What a full queue drops is in memory all the same, and is queued when it is used."""
    host, second = HostTier(ROOM), HostTier(ROOM)
    slow = SlowTier(second, 0.3)
    store = TieredStore(LAYOUT, NullTier(), host, [slow], queue_bytes=1500)
    chats = [chain(range(n * 100, n * 100 + 16)) for n in range(8)]
    for mine in chats:
        keep(store, mine, 16)
    assert store.stats().dropped > 0
    assert [store.match(mine).length for mine in chats] == [16] * 8
    slow.seconds = 0.0
    settle(store)
    for mine in chats:
        bring(store, mine)
        settle(store)
    assert set(second.held()) == set(host.held())
    store.close()


def test_close_is_bounded() -> None:
    """close leaves a tier that hangs alone, after the time that it was given."""
    second = GatedTier(HostTier(ROOM))
    store = TieredStore(LAYOUT, NullTier(), HostTier(ROOM), [second], close_seconds=0.05)
    second.gate.clear()
    keep(store, chain(range(30)), 30)
    began = time.monotonic()
    store.close()
    assert time.monotonic() - began < 5
    second.gate.set()
    assert store._writer.close(time.monotonic() + 10)
    assert second.held() != []  # it was not closed under the thread's feet


def test_rebuild_forgets_nothing_new() -> None:
    """What is offered while the index is rebuilt is found afterwards."""
    mine = chain(range(20))

    class Offering(HostTier):
        after: Callable[[], object] | None = None

        def held(self) -> list[BlockKey]:
            before = super().held()
            if self.after:
                self.after()
            return before

    host = Offering(ROOM)
    store = TieredStore(LAYOUT, NullTier(), host)

    def offer() -> None:
        keep(store, mine, 20)
        settle(store)

    host.after = offer
    store._ends.rebuild(store._writer.pending())
    assert store.match(mine).length == 20
    store.close()


def test_rebuild_forgets_nothing_queued() -> None:
    """What only the queue holds while the index is rebuilt is found once it is written."""
    host, second = HostTier(ROOM), GatedTier(HostTier(ROOM))
    store = TieredStore(LAYOUT, NullTier(), host, [second])
    mine = chain(range(20))
    second.gate.clear()
    keep(store, mine, 20)
    host.discard(host.held())
    store._ends.rebuild(store._writer.pending())
    second.gate.set()
    settle(store)
    assert store.match(mine).length == 20
    store.close()


def test_full_queue_drops_and_counts() -> None:
    """A queue that is full drops what is offered, counts it, and never blocks the caller."""
    second = GatedTier(HostTier(ROOM))
    store = TieredStore(LAYOUT, NullTier(), HostTier(ROOM), [second], queue_bytes=1500)
    second.gate.clear()
    for n in range(20):
        keep(store, chain(range(n * 100, n * 100 + 16)), 16)
    stats = store.stats()
    assert 0 < stats.dropped < stats.offered
    assert 0 < stats.queued_bytes <= 1500
    second.gate.set()
    store.close()


def test_load_does_not_block() -> None:
    """load returns at once, poll is empty until the slow tier has answered."""
    host, second = HostTier(ROOM), GatedTier(HostTier(ROOM))
    store = TieredStore(LAYOUT, NullTier(), host, [second])
    mine = chain(range(30))
    keep(store, mine, 30)
    settle(store)
    host.discard(host.held())
    second.gate.clear()
    room = MemoryRoom()
    ticket = store.load(store.match(mine), mine, room)
    assert store.poll() == []
    second.gate.set()
    check(wait_for(store, ticket), room, mine)
    store.close()


def test_restore_waits_for_no_write(tmp_path: Path) -> None:
    """While a write holds the disk's files, a restore from the disk comes back."""
    host, disk = HostTier(ROOM), DiskTier(tmp_path, ROOM)
    store = TieredStore(LAYOUT, NullTier(), host, [disk])
    mine = chain(range(30))
    keep(store, mine, 30)
    settle(store)
    host.discard(host.held())
    with disk._writing:
        check(*bring(store, mine), mine)
        assert store.stats().tiers[2].hits > 0
    store.close()


def test_closed_store_takes_nothing() -> None:
    """After close (twice) an offer is dropped and counted."""
    store = TieredStore(LAYOUT, NullTier(), HostTier(ROOM))
    store.close()
    store.close()
    assert keep(store, chain(range(9)), 9) == 0
    assert store.stats().dropped > 0


def test_ends_do_not_pile_up() -> None:
    """The index forgets the ends of blocks that no tier holds any more."""
    store = TieredStore(LAYOUT, NullTier(), HostTier(3000))
    for n in range(3000):
        keep(store, chain([n, n + 1, n + 2]), 3)
    settle(store)
    assert store._ends._known < 5000
    store.close()


def test_a_tier_too_slow_is_passed_over() -> None:
    """What would take longer to restore than to compute is not part of a match, until it may be."""
    policy = Policy()
    slow = HostTier(ROOM)
    slow.name = "slow"
    host = HostTier(ROOM)
    store = TieredStore(LAYOUT, NullTier(), host, [slow], policy=policy)
    mine = chain(range(40))
    keep(store, mine, 16)
    keep(store, mine, 40)
    settle(store)
    host.discard([k for k in host.held() if k.prefix.length > 16])
    assert store.match(mine).length == 40
    policy.observe_prefill(40_000, 1.0)
    policy.observe_restore("slow", 1 << 20, 1000.0)
    match = store.match(mine)
    assert (match.length, match.miss, match.by_tier) == (16, "slow", (("host", 16),))
    policy.observe_restore("slow", 1 << 30, 0.001)
    assert store.match(mine).length == 40
    store.close()


def test_one_flight_for_one_block() -> None:
    """Two restores of the same far blocks at once cross the network once."""

    class Counting(FarTier):
        fetched = 0
        began = threading.Event()
        go = threading.Event()

        def fetch(self, keys: Sequence[BlockKey], into: Sequence[memoryview]) -> list[bytes | None]:
            self.fetched += len(keys)
            self.began.set()
            assert self.go.wait(10)
            return super().fetch(keys, into)

    mine = chain(range(24))
    far = Counting(HostTier(ROOM))
    far.put([block(key, mine) for key in (b.key for b in blocks(mine))])
    store = TieredStore(LAYOUT, NullTier(), HostTier(ROOM), [far])
    rooms = [MemoryRoom(), MemoryRoom()]
    tickets = [store.load(store.match(mine), mine, room, (24,)) for room in rooms]
    assert far.began.wait(10)
    time.sleep(0.05)
    far.go.set()
    ended: dict[Ticket, Loaded] = {}
    while len(ended) < 2:
        ended |= {loaded.ticket: loaded for loaded in store.poll()}
    for ticket, room in zip(tickets, rooms, strict=True):
        check(ended[ticket], room, mine)
    needed = len(ended[tickets[0]].match.blocks)
    assert far.fetched == needed
    store.close()
