"""Slots of the device."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from kvstore.api import BlockKey, Scope
from kvstore.pool import Pool
from kvstore.testing import blocks, chain

ANN, BEN = b"a" * 16, b"b" * 16


def key(number: int, tokens: int = 8, group: int = 0) -> BlockKey:
    return next(
        b.key
        for b in blocks(chain(range(number * 100, number * 100 + tokens)))
        if b.key.group == group
    )


def test_take_and_release() -> None:
    """Slots are given once each, refused whole when too few are left, and come back."""
    pool = Pool({0: 3, 1: 1})
    first = pool.take(0, 2, 0.0)
    assert first is not None
    assert pool.take(0, 2, 0.0) is None
    assert pool.used == 2
    assert sorted(pool.release(0, first, 0.0)) == sorted(first)
    assert pool.room(0) == 3


def test_a_named_slot_is_kept_until_room_is_needed() -> None:
    """A released page with a name serves others, and leaves when somebody needs its slot."""
    pool = Pool({0: 2})
    (slot,) = pool.take(0, 1, 0.0) or []
    assert pool.name(key(1), slot, ANN)
    assert pool.release(0, [slot], 0.0) == []
    assert pool.pin([key(1)]) == [slot]
    assert pool.take(0, 2, 1.0) is None  # in use: not to be had
    pool.release(0, [slot], 1.0)
    assert pool.take(0, 2, 1.0) is not None
    assert pool.evicted() == [key(1)]
    assert pool.pin([key(1)]) is None


def test_one_page_is_several_blocks() -> None:
    """The prefixes that end inside a page share its slot; the shorter ones stay true."""
    pool = Pool({0: 2})
    of = chain(range(8))
    (slot,) = pool.take(0, 1, 0.0) or []
    names = [BlockKey(of.key(n), 0, 0) for n in (3, 8, 5)]
    assert all(pool.name(name, slot, ANN) for name in names)
    assert all(pool.where(name) == slot for name in names)
    pool.release(0, [slot], 0.0)
    assert pool.pin(names[:1]) == [slot]
    assert not pool.may_append(0, slot, 3)  # five and eight tokens of it are somebody's
    assert pool.may_append(0, slot, 8)


def test_two_users_do_not_append() -> None:
    """A page with two users is written behind by neither."""
    pool = Pool({0: 1})
    (slot,) = pool.take(0, 1, 0.0) or []
    name = BlockKey(chain(range(5)).key(5), 0, 0)
    pool.name(name, slot, ANN)
    assert pool.may_append(0, slot, 5)
    pool.pin([name])
    assert not pool.may_append(0, slot, 5)


def test_a_block_has_one_slot_and_a_slot_one_owner() -> None:
    """A second slot with the same block gets no name, nor does a slot of somebody else."""
    pool = Pool({0: 2})
    one, two = pool.take(0, 2, 0.0) or []
    assert pool.name(key(1), one, ANN)
    assert not pool.name(key(1), two, ANN)
    assert not pool.name(key(2), one, BEN)
    assert pool.release(0, [two], 0.0) == [two]


def test_scope_names_an_owner_or_a_tenant() -> None:
    """A scope's blocks are found by owner and by tenant."""
    pool = Pool({0: 2})
    one, two = pool.take(0, 2, 0.0) or []
    pool.name(key(1), one, ANN)
    pool.name(key(2), two, BEN)
    space = key(1).prefix.space
    assert pool.scope(Scope(space, ANN)) == [key(1)]
    assert set(pool.scope(Scope(space))) == {key(1), key(2)}
    assert pool.scope(Scope(b"nobody")) == []


class PoolMachine(RuleBasedStateMachine):
    """Slots are never lost and never in two places, whatever the order of calls."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = Pool({0: 5})
        self.users: list[list[int]] = []
        self.now = 0.0

    @rule(count=st.integers(0, 3))
    def take(self, count: int) -> None:
        self.now += 3.0
        room = self.pool.room(0)
        taken = self.pool.take(0, count, self.now)
        assert (taken is None) == (count > room)
        if taken is not None:
            assert all(slot not in user for slot in taken for user in self.users)
            self.users.append(taken)

    @rule(which=st.integers(0, 9), number=st.integers(0, 5), tokens=st.integers(1, 8))
    def name(self, which: int, number: int, tokens: int) -> None:
        if self.users and (user := self.users[which % len(self.users)]):
            self.pool.name(key(number, tokens), user[0], ANN)

    @rule(number=st.integers(0, 5), tokens=st.integers(1, 8))
    def pin(self, number: int, tokens: int) -> None:
        pinned = self.pool.pin([key(number, tokens)])
        if pinned is not None:
            self.users.append(pinned)

    @rule(which=st.integers(0, 9))
    def release(self, which: int) -> None:
        if self.users:
            self.pool.release(0, self.users.pop(which % len(self.users)), self.now)

    @rule(number=st.integers(0, 5), tokens=st.integers(1, 8))
    def discard(self, number: int, tokens: int) -> None:
        self.pool.discard([key(number, tokens)], self.now)
        assert key(number, tokens) not in self.pool

    @invariant()
    def slots_are_conserved(self) -> None:
        used = {slot for user in self.users for slot in user}
        assert self.pool.used == len(used)
        assert self.pool.room(0) == 5 - len(used)
        for name in self.pool.names:
            assert self.pool.where(name) in range(5)

    def teardown(self) -> None:
        for user in self.users:
            self.pool.release(0, user, self.now)
        assert self.pool.used == 0
        assert self.pool.take(0, 5, self.now + 1) is not None


TestPoolMachine = PoolMachine.TestCase
TestPoolMachine.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def test_release_of_a_free_slot_is_a_defect() -> None:
    """Releasing what nobody uses is caught."""
    pool = Pool({0: 1})
    with pytest.raises(AssertionError):
        pool.release(0, [0], 0.0)
