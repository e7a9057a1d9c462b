"""Which block leaves next."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from kvstore.retention import Retention
from kvstore.testing import blocks, chain

if TYPE_CHECKING:
    from kvstore.api import BlockKey

SPACE = chain([]).space


def keys(number: int, tokens: int = 24) -> list[BlockKey]:
    return [b.key for b in blocks(chain(range(number * 1000, number * 1000 + tokens)))]


def owner(number: int) -> bytes:
    return number.to_bytes(16, "big")


def test_a_chat_loses_its_tail_first() -> None:
    """Of one visit's blocks the furthest from the start goes first: no gap in front."""
    order = Retention()
    mine = [k for k in keys(0, 40) if k.group == 0]
    order.add(mine, owner(0), 0.0, cost=1)
    assert order.victims(2, 1000.0) == mine[:-3:-1]
    order.use(mine[:3], 1001.0)
    assert order.victims(3, 1002.0) == mine[2::-1]


def test_leftovers_go_before_what_is_used() -> None:
    """What an owner's latest visit did not use goes before anybody's latest prefix."""
    order = Retention()
    old, other = keys(0), keys(1)
    order.add(old, owner(0), 0.0, cost=1)
    order.add(other, owner(1), 1.0, cost=1)
    order.use(old[:2], 30.0)  # it came back and used a shorter prefix
    assert set(order.victims(len(old) - 2, 31.0)) == set(old[2:])


def test_gone_goes_first() -> None:
    """Long away goes before leftovers, the longest away first; retired counts as away."""
    order = Retention()
    for number, seen in ((0, 0.0), (1, 100.0), (2, 190.0)):
        order.add(keys(number), owner(number), seen, cost=1)
    order.retire(SPACE, owner(2))
    assert set(order.victims(1, 220.0)) <= set(keys(0))
    assert set(order.victims(len(keys(0)) - 1, 220.0)) <= set(keys(0))
    assert set(order.victims(1, 220.0)) <= set(keys(1))


def test_furthest_return_goes() -> None:
    """Of those who are expected, the one with the longest usual pause to come goes."""
    order = Retention()
    quick, slow = keys(0), keys(1)
    order.add(quick, owner(0), 0.0, cost=1)
    order.add(slow, owner(1), 0.0, cost=1)
    for now in (5.0, 10.0, 15.0, 20.0):
        order.use(quick, now)
    for now in (60.0, 120.0):
        order.use(slow, now)
        order.use(quick, now)
    assert set(order.victims(1, 121.0)) <= set(slow)


def test_broken_prefix_follows_its_missing_part() -> None:
    """Once a block of an owner's newest prefix is taken, the rest of it is next."""
    order = Retention()
    for number in range(3):
        order.add(keys(number), owner(number), float(number), cost=1)
    (first,) = order.victims(1, 10.0, group=0)
    victims = order.victims(len(keys(0)) - 1, 10.0)
    assert {k.prefix.space for k in victims} == {first.prefix.space}
    whose = next(n for n in range(3) if first in keys(n))
    assert set(victims) | {first} == set(keys(whose))


def test_a_newcomer_displaces_nobody_who_is_expected() -> None:
    """Who holds nothing yet gets no room at the cost of those expected back sooner."""
    order = Retention()
    order.add(keys(0), owner(0), 0.0, cost=1)
    assert order.victims(1, 5.0, newcomer=(SPACE, owner(1))) == []
    assert len(order.victims(1, 200.0, newcomer=(SPACE, owner(1)))) == 1


def test_tenant_and_group_narrow_the_choice() -> None:
    """Victims of one tenant, or of one group, are of no other."""
    order = Retention()
    other = [b.key for b in blocks(chain(range(24), tenant="other"))]
    order.add(keys(0), owner(0), 0.0, cost=1)
    order.add(other, owner(0), 0.0, cost=1)
    assert set(order.victims(2, 999.0, space=other[0].prefix.space)) <= set(other)
    assert {k.group for k in order.victims(3, 999.0, group=1)} == {1}
    assert order.victims(1, 999.0, space=b"nobody") == []


@given(st.data())
def test_costs_add_up(data: st.DataObject) -> None:
    """Whatever comes and goes, each held block is counted once, and victims are held blocks."""
    order = Retention()
    held: dict[BlockKey, int] = {}
    now = 0.0
    for _ in range(data.draw(st.integers(1, 12))):
        now += data.draw(st.sampled_from([0.5, 10.0, 300.0]))
        number = data.draw(st.integers(0, 3))
        match data.draw(st.sampled_from(["add", "use", "remove", "victims", "retire"])):
            case "add":
                new = [k for k in keys(number) if k not in held]
                cost = data.draw(st.integers(1, 5))
                order.add(new, owner(number), now, cost=cost, shared=number == 3)
                held |= dict.fromkeys(new, cost)
            case "use":
                order.use(keys(number)[: data.draw(st.integers(0, 6))], now)
            case "remove":
                order.remove(keys(number)[0])
                held.pop(keys(number)[0], None)
            case "retire":
                order.retire(SPACE, owner(number))
            case _:
                needed = data.draw(st.integers(0, 20))
                taken = order.victims(needed, now)
                assert len(set(taken)) == len(taken)
                assert sum(held[k] for k in taken) >= needed or len(taken) == len(held)
                for key in taken:
                    del held[key]
        assert len(order) == len(held)
        assert order.cost_of(SPACE) == sum(held.values())
        assert all(key in order for key in held)
