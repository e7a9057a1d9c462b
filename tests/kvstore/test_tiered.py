"""Tiers in a row: the longest restorable prefix, always right, whatever the tiers do."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from kvstore.api import Block, BlockKey, Group, Layout, Loaded, Match
from kvstore.disk import DiskTier
from kvstore.host import HostTier
from kvstore.keys import TokenChain
from kvstore.null import NullStore
from kvstore.testing import LAYOUT, FailingTier, SlowTier, block, chain
from kvstore.tiered import TieredStore

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from kvstore.api import PrefixStore, Tier

ROOM = 1 << 20


def keep(store: PrefixStore, of: TokenChain, length: int, layout: Layout = LAYOUT) -> int:
    """Offers what the prefix needs and the store lacks."""
    keys = store.missing(of, length)
    return store.offer([block(key, of, layout) for key in keys])


def bring(store: PrefixStore, of: TokenChain, match: Match | None = None) -> Loaded:
    """Loads a match and waits for it."""
    ticket = store.load(match or store.match(of), of)
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        for loaded in store.poll():
            assert loaded.ticket == ticket
            return loaded
        time.sleep(0.001)
    raise TimeoutError("the load did not end")


def settle(store: TieredStore) -> None:
    """Waits until nothing is queued behind the reply."""
    deadline = time.monotonic() + 10
    while store.stats().queued_bytes and time.monotonic() < deadline:
        time.sleep(0.001)
    assert store.stats().queued_bytes == 0


def check(loaded: Loaded, of: TokenChain, layout: Layout = LAYOUT) -> None:
    """The blocks are exactly those that the prefix needs, each with its one right payload."""
    length = loaded.match.length
    assert tuple(b.key for b in loaded.blocks) == loaded.match.blocks
    for b in loaded.blocks:
        assert b == block(b.key, of, layout)
    needed = [
        (g.id, s)
        for g in (layout.groups if length else ())
        for s in range(layout.first_needed(g, length), length, layout.block_tokens)
    ]
    assert [(b.key.group, b.key.start) for b in loaded.blocks] == needed
    assert sum(n for _, n in loaded.match.by_tier) == length


@pytest.fixture
def store() -> Iterator[TieredStore]:
    made = TieredStore(LAYOUT, [HostTier(LAYOUT, ROOM)])
    yield made
    made.close()


def test_cold_then_warm(store: TieredStore) -> None:
    """An unknown chain is cold; once kept, all of it comes back, partial tail included."""
    mine = chain(range(29))
    assert store.match(mine) == Match(0, miss="cold")
    assert keep(store, mine, 29) > 0
    match = store.match(mine)
    assert (match.length, match.miss, match.by_tier) == (29, "", (("host", 29),))
    check(bring(store, mine), mine)
    assert store.missing(mine, 29) == []


def test_every_kept_boundary_is_found(store: TieredStore) -> None:
    """Message boundaries are found without being told: reply, edit, regenerate and branch."""
    mine = chain(range(50))
    for boundary in (5, 21, 34, 50):
        keep(store, mine, boundary)
    longer = chain([*range(50), 7, 7, 7])
    assert store.match(longer).length == 50
    for boundary in (5, 21, 34):  # another continuation after each boundary
        other = chain([*range(boundary), 999, 998])
        loaded = bring(store, other)
        assert loaded.match.length == boundary
        check(loaded, other)
    # Between boundaries: the last block boundary whose window is still there.
    assert store.match(chain([*range(33), 999])).length == 32


def test_window_rule() -> None:
    """A prefix needs every global block and only the window's local blocks."""
    store = TieredStore(LAYOUT, [host := HostTier(LAYOUT, ROOM)])
    mine = chain(range(64))
    keep(store, mine, 64)
    local = [k for k in store.match(mine).blocks if k.group == 1]
    assert [k.start for k in local] == [48, 56]
    assert {k.start for k in host.held() if k.group == 1} == {48, 56}
    # Without the earlier local blocks, an earlier boundary cannot be restored.
    assert store.match(chain([*range(40), 999])) == Match(0, miss="window_evicted")
    host.discard([next(k for k in host.held() if k.group == 0 and k.start == 8)])
    assert store.match(mine) == Match(0, miss="evicted")
    store.close()


def test_shared_prefix_is_stored_once(store: TieredStore) -> None:
    """Two chats with the same persona share its whole blocks."""
    persona = list(range(32))
    keep(store, chain([*persona, 100, 101]), 34)
    taken = keep(store, chain([*persona, 200, 201]), 34)
    assert taken == len(LAYOUT.groups)  # a tail a group, nothing else
    assert store.match(chain([*persona, 300])).length == 32


def test_colliding_rolling_values(monkeypatch: pytest.MonkeyPatch, store: TieredStore) -> None:
    """With every rolling value forged to be equal, only right prefixes are served."""
    monkeypatch.setattr(TokenChain, "rolling", lambda self, length: 1)
    real = TokenChain.key
    monkeypatch.setattr(
        TokenChain, "key", lambda self, length: replace(real(self, length), rolling=1)
    )
    mine, other = chain(range(20)), chain(range(100, 120))
    keep(store, mine, 20)
    assert store.match(other).length == 0
    keep(store, other, 20)
    check(bring(store, other), other)
    check(bring(store, mine), mine)


def test_forged_block_is_refused() -> None:
    """A block whose token ids are not the chain's is a miss, is forgotten, and counts as damage."""
    host = HostTier(LAYOUT, ROOM)
    store = TieredStore(LAYOUT, [host])
    mine = chain(range(20))
    keep(store, mine, 8)
    keep(store, mine, 20)
    victim = next(k for k in host.held() if k.group == 0 and k.start == 8)
    good = block(victim, mine)
    host.discard([victim])
    host.put([Block(victim, tuple(range(900, 900 + victim.tokens)), good.payload)])
    loaded = bring(store, mine)
    check(loaded, mine)
    assert loaded.match.miss == "damaged"
    assert loaded.match.length == 8
    assert victim not in host.held()
    store.close()


def test_disk_outlives_the_store(tmp_path: Path) -> None:
    """A new store on the same folder serves the whole prefix from disk, then from host."""
    mine = chain(range(45))
    first = TieredStore(LAYOUT, [HostTier(LAYOUT, ROOM), DiskTier(tmp_path, ROOM)])
    keep(first, mine, 45)
    first.close()
    second = TieredStore(LAYOUT, [HostTier(LAYOUT, ROOM), DiskTier(tmp_path, ROOM)])
    assert second.match(mine).by_tier == (("disk", 45),)
    check(bring(second, mine), mine)
    assert second.match(mine).by_tier == (("host", 45),)
    second.close()


def test_broken_tier_is_a_miss(tmp_path: Path) -> None:
    """A tier that raises costs its blocks and nothing else."""
    disk = FailingTier(DiskTier(tmp_path, ROOM))
    host = HostTier(LAYOUT, ROOM)
    store = TieredStore(LAYOUT, [host, disk])
    mine = chain(range(30))
    keep(store, mine, 30)
    settle(store)
    host.discard(host.held())
    disk.broken = True
    loaded = bring(store, mine)
    assert (loaded.match.length, loaded.match.miss, loaded.blocks) == (0, "damaged", ())
    other = chain(range(60, 90))
    keep(store, other, 30)
    check(bring(store, other), other)
    store.close()


def test_full_queue_drops_and_counts(tmp_path: Path) -> None:
    """A queue that is full drops what is offered, counts it, and never blocks the caller."""
    slow = SlowTier(DiskTier(tmp_path, ROOM), 0.2)
    store = TieredStore(LAYOUT, [HostTier(LAYOUT, ROOM), slow], queue_bytes=1500)
    began = time.monotonic()
    for n in range(20):
        keep(store, chain(range(n * 100, n * 100 + 16)), 16)
    assert time.monotonic() - began < 0.15
    stats = store.stats()
    assert 0 < stats.dropped < stats.offered
    store.close()


def test_load_does_not_block(tmp_path: Path) -> None:
    """load returns at once, poll is empty until the slow tier has answered."""
    slow = SlowTier(DiskTier(tmp_path, ROOM), 0.0)
    host = HostTier(LAYOUT, ROOM)
    store = TieredStore(LAYOUT, [host, slow])
    mine = chain(range(30))
    keep(store, mine, 30)
    settle(store)
    host.discard(host.held())
    slow.seconds = 0.1
    began = time.monotonic()
    store.load(store.match(mine), mine)
    assert store.poll() == []
    assert time.monotonic() - began < 0.1
    store.close()


def test_layers_of_one_window_alone() -> None:
    """A model with local layers only restores a prefix from its window."""
    layout = Layout((Group(0, (0,), 10, 8),), block_tokens=8)
    store = TieredStore(layout, [HostTier(layout, ROOM)])
    mine = chain(range(64), layout=layout)
    keep(store, mine, 64, layout)
    loaded = bring(store, mine)
    check(loaded, mine, layout)
    assert loaded.match.length == 64
    store.close()


def test_closed_store_takes_nothing() -> None:
    """After close (twice) an offer is dropped and counted."""
    store = TieredStore(LAYOUT, [HostTier(LAYOUT, ROOM)])
    store.close()
    store.close()
    assert keep(store, chain(range(9)), 9) == 0
    assert store.stats().dropped > 0


def test_ends_do_not_pile_up() -> None:
    """The index forgets the ends of blocks that no tier holds any more."""
    store = TieredStore(LAYOUT, [HostTier(LAYOUT, 3000)])
    for n in range(3000):
        keep(store, chain([n, n + 1, n + 2]), 3)
    settle(store)
    assert len(store._ends) < 5000
    store.close()


def test_null_store() -> None:
    """The do-nothing store misses everything and asks for nothing."""
    store = NullStore()
    mine = chain(range(20))
    assert store.match(mine) == Match(0, miss="cold")
    assert store.missing(mine, 20) == []
    assert store.offer([]) == 0
    assert store.poll() == []
    with pytest.raises(ValueError, match="nothing to load"):
        store.load(Match(0), mine)
    assert store.stats().tiers == ()
    store.close()


class StoreAgainstSet(RuleBasedStateMachine):
    """The store against a plain set of kept prefixes, under eviction and failing tiers."""

    @initialize()
    def open(self) -> None:
        self.host = HostTier(LAYOUT, 6000)
        self.second = FailingTier(HostTier(LAYOUT, 12_000))
        self.second.name = "second"
        tiers: Sequence[Tier] = [self.host, self.second]
        self.store = TieredStore(LAYOUT, tiers)
        self.kept: set[tuple[int, ...]] = set()

    @rule(tokens=st.lists(st.integers(0, 2), min_size=1, max_size=30), again=st.integers(0, 3))
    def keep(self, tokens: list[int], again: int) -> None:
        mine = chain(tokens * (again + 1))
        keep(self.store, mine, len(mine.tokens))
        self.kept.add(tuple(mine.tokens))

    @rule(tokens=st.lists(st.integers(0, 2), min_size=1, max_size=40), again=st.integers(0, 3))
    def bring(self, tokens: list[int], again: int) -> None:
        mine = chain(tokens * (again + 1))
        match = self.store.match(mine)
        if not match.length:
            return
        prefix = tuple(mine.tokens[: match.length])
        assert any(kept[: match.length] == prefix for kept in self.kept)
        check(bring(self.store, mine, match), mine)

    @rule(index=st.integers(0, 50))
    def evict(self, index: int) -> None:
        held = self.host.held()
        if held:
            self.host.discard([held[index % len(held)]])

    @rule(broken=st.booleans())
    def break_second(self, broken: bool) -> None:
        self.second.broken = broken

    @invariant()
    def missing_is_what_is_lacking(self) -> None:
        for kept in sorted(self.kept)[:3]:
            mine = chain(kept)
            if not self.store.missing(mine, len(kept)):
                assert self.store.match(mine).length == len(kept)

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.store.close()


TestStoreAgainstSet = StoreAgainstSet.TestCase
TestStoreAgainstSet.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)


def test_block_key_counts_its_tokens() -> None:
    """A block key knows how many tokens it covers."""
    assert BlockKey(chain(range(9)).key(9), 8, 0).tokens == 1
