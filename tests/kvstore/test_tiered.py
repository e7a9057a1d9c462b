"""Tiers in a row: the longest restorable prefix, always right, whatever the tiers do.

Longer than our other files: one set of helpers tries every way a prefix can be lost.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from kvstore.api import BlockKey, Group, Layout, Match
from kvstore.disk import DiskTier
from kvstore.host import HostTier
from kvstore.null import NullStore, NullTier
from kvstore.testing import (
    LAYOUT,
    FailingTier,
    MemoryRoom,
    bring,
    chain,
    check,
    keep,
)
from kvstore.tiered import TieredStore

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path


ROOM = 1 << 20


@pytest.fixture
def store() -> Iterator[TieredStore]:
    made = TieredStore(LAYOUT, NullTier(), HostTier(ROOM))
    yield made
    made.close()


def test_cold_then_warm(store: TieredStore) -> None:
    """An unknown chain is cold; once kept, all of it comes back, partial tail included."""
    mine = chain(range(29))
    assert store.match(mine) == Match(0, miss="cold")
    assert keep(store, mine, 29) > 0
    match = store.match(mine)
    assert (match.length, match.miss, match.by_tier) == (29, "", (("host", 29),))
    check(*bring(store, mine), mine)
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
        loaded, room = bring(store, other)
        assert loaded.match.length == boundary
        check(loaded, room, other)
    # Between boundaries: the last block boundary whose window is still there.
    assert store.match(chain([*range(33), 999])).length == 32


def test_window_rule() -> None:
    """A prefix needs every global block and only the window's local blocks."""
    store = TieredStore(LAYOUT, NullTier(), host := HostTier(ROOM))
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


def test_disk_outlives_the_store(tmp_path: Path) -> None:
    """A new store on the same folder serves the whole prefix from disk, then from host."""
    mine = chain(range(45))
    first = TieredStore(LAYOUT, NullTier(), HostTier(ROOM), [DiskTier(tmp_path, ROOM)])
    keep(first, mine, 45)
    first.close()
    second = TieredStore(LAYOUT, NullTier(), HostTier(ROOM), [DiskTier(tmp_path, ROOM)])
    assert second.match(mine).by_tier == (("disk", 45),)
    check(*bring(second, mine), mine)
    assert keep(second, mine, 45) > 0  # what the engine does behind the reply
    assert second.match(mine).by_tier == (("host", 45),)
    second.close()


def test_a_gap_is_found_in_few_lookups() -> None:
    """A long chat without its windows, or without its tails, costs no look-up per block pair."""

    class Counting(HostTier):
        asked = 0

        def leading(self, keys: Sequence[BlockKey]) -> int:
            self.asked += 1
            return super().leading(keys)

    host = Counting(ROOM)
    store = TieredStore(LAYOUT, NullTier(), host)
    mine = chain(range(798))  # a hundred blocks
    for boundary in (*range(20, 798, 20), 798):
        keep(store, mine, boundary)
    host.discard([k for k in host.held() if k.group == 0 and k.tokens < LAYOUT.block_tokens])
    assert (store.match(mine).length, store.match(mine).miss) == (760, "evicted")
    gap = next(k for k in host.held() if k.group == 0 and k.start == 400)
    host.discard([gap])
    host.asked = 0
    assert (store.match(mine).length, store.match(mine).miss) == (400, "evicted")
    assert host.asked < 600  # two matches
    host.discard([k for k in host.held() if k.group == 1])
    host.asked = 0
    assert store.match(mine) == Match(0, miss="window_evicted")
    assert host.asked < 200
    store.close()


def test_layers_of_one_window_alone() -> None:
    """A model with local layers only restores a prefix from its window."""
    layout = Layout((Group(0, (0,), 10, (8,)),), block_tokens=8)
    store = TieredStore(layout, NullTier(), HostTier(ROOM))
    mine = chain(range(64), layout=layout)
    keep(store, mine, 64, layout)
    loaded, room = bring(store, mine, layout=layout)
    check(loaded, room, mine, layout)
    assert loaded.match.length == 64
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
        store.load(Match(0), mine, MemoryRoom())
    assert store.stats().tiers == ()
    store.close()


class StoreAgainstSet(RuleBasedStateMachine):
    """The store against a plain set of kept prefixes: eviction, forged blocks, a failing tier."""

    @initialize()
    def open(self) -> None:
        self.host = HostTier(6000)
        self.second = FailingTier(HostTier(12_000))
        self.second.name = "second"
        self.store = TieredStore(LAYOUT, NullTier(), self.host, [self.second])
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
        check(*bring(self.store, mine, match), mine)

    @rule(index=st.integers(0, 50))
    def evict(self, index: int) -> None:
        held = self.host.held()
        if held:
            self.host.discard([held[index % len(held)]])

    @rule(index=st.integers(0, 50))
    def forge(self, index: int) -> None:
        held = self.host.held()
        if held:
            key = held[index % len(held)]
            good = self.host.block(key)
            assert good
            self.host.discard([key])
            self.host.put([replace(good, ids=bytes([7, 0, 0, 0]) * key.tokens)])

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
