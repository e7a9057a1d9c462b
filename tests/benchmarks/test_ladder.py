"""The ladder's arithmetic: what schedules, caches and prices do to a conversation's cost."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.local.synthetic import synthetic_config
from benchmarks.ladder import RUNGS, Measured, StepTime, Traffic, cost, replies
from benchmarks.ladder_floor import H100, floor

STATIC, CACHED, CONTINUOUS = RUNGS[5:]
MEASURED = Measured(1000, 500, 28_000.0, 0.2, (StepTime(8, 0.01), StepTime(64, 0.02)))


def test_by_hand() -> None:
    """With even replies: the prompt's time and a place's share of 140 steps, 110 times an hour."""
    found = cost(CONTINUOUS, MEASURED, Traffic(), even=True)
    seconds = 0.2 + 140 * 0.02 / 64
    assert found.batch == 64
    assert found.turn_seconds == pytest.approx(seconds)
    assert found.served == pytest.approx(3600 / (110 * seconds))
    assert found.dollars_an_hour == pytest.approx(2.5 * 110 * seconds / 3600)


def test_static_waits_for_the_longest() -> None:
    """A static batch of two costs the mean of the longer of two replies, by hand."""
    traffic = Traffic(reply=2, longest_reply=4)
    chances = replies(2, 4)
    both = [(a, b) for a in range(4) for b in range(4)]
    longer = sum(chances[a] * chances[b] * (1 + max(a, b)) for a, b in both)
    two = Measured(1, 10, 1.0, 0.0, (StepTime(2, 1.0),))
    assert cost(STATIC, two, traffic).turn_seconds == pytest.approx(longer / 2)
    assert cost(CONTINUOUS, two, traffic).turn_seconds == pytest.approx(2 / 2)


@given(mean=st.integers(2, 200), longest=st.integers(500, 900))
@settings(max_examples=20, deadline=None)
def test_replies(mean: int, longest: int) -> None:
    """The chances sum to one and have the mean that was asked for."""
    chances = replies(mean, longest)
    assert sum(chances) == pytest.approx(1.0)
    assert sum((n + 1) * c for n, c in enumerate(chances)) == pytest.approx(mean, rel=1e-4)


def test_replies_that_cannot_be() -> None:
    """A mean beyond half of the longest is no geometric distribution, and is refused."""
    with pytest.raises(ValueError, match="140"):
        replies(140, 200)


def test_even_replies() -> None:
    """Where all replies are equal, continuous batching gains nothing over static batches."""
    costs = [cost(rung, MEASURED, Traffic(), even=True) for rung in (CACHED, CONTINUOUS)]
    assert costs[0].dollars_an_hour == pytest.approx(costs[1].dollars_an_hour)


def test_memory_bounds_what_is_cached() -> None:
    """A GPU that keeps KV between turns has no more conversations than fit."""
    small = replace(MEASURED, fits=7)
    assert cost(CACHED, small, Traffic()).served == 7
    assert cost(STATIC, small, Traffic()).served > 7


def test_slow_steps_are_not_run() -> None:
    """A batch whose step is slower than a stream may wait is passed over, however cheap."""
    steps = (StepTime(8, 0.01), StepTime(4096, 0.2))
    measured = replace(MEASURED, steps=steps)
    assert cost(CONTINUOUS, measured, Traffic()).batch == 8
    assert cost(CONTINUOUS, measured, Traffic(slowest_step=1.0)).batch == 4096


def test_nothing_measured() -> None:
    """A rung without a decode step has no cost."""
    with pytest.raises(ValueError, match="continuous"):
        cost(CONTINUOUS, replace(MEASURED, steps=()), Traffic())


@given(price=st.floats(0.1, 100), turns=st.floats(1, 1000))
@settings(max_examples=20)
def test_price_and_turns(price: float, turns: float) -> None:
    """Cost grows with the price and with the turns of an hour, one to one."""
    base = cost(STATIC, MEASURED, Traffic()).dollars_an_hour
    found = cost(STATIC, MEASURED, Traffic(price_an_hour=price, turns_an_hour=turns))
    assert found.dollars_an_hour == pytest.approx(base * price / 2.5 * turns / 110)


def test_uncached() -> None:
    """5 % of 5,600 tokens are 280."""
    assert Traffic().uncached == 280


def test_rungs_add_one_technique_each() -> None:
    """No rung takes back what the one before has, and each of the last four adds one thing."""
    assert [rung.shape for rung in RUNGS] == ["mha", "mqa", "local", *["cai"] * 5]
    had = [rung.int8 + rung.narrow + rung.cached + rung.continuous for rung in RUNGS]
    assert had == [0, 0, 0, 0, 1, 2, 3, 4]


@pytest.mark.parametrize("even", [False, True])
def test_floor_falls(even: bool) -> None:
    """By the card's roofs alone no rung costs more than the one before it, by 1 % of rounding."""
    costs = [cost(r, floor(r, "13b", Traffic(), H100), Traffic(), even=even) for r in RUNGS]
    dollars = [found.dollars_an_hour for found in costs]
    assert all(after <= before * 1.01 for before, after in pairwise(dollars))


def test_floor_by_hand() -> None:
    """The first rung's decode reads all weights and all KV once; its prefill multiplies them."""
    found = floor(RUNGS[0], "13b", Traffic(), H100)
    config = synthetic_config("13b-mha")
    kv = 2 * 42 * 5120 * 2 * 5670
    assert found.fits == found.steps[-1].batch == 9
    expected = (2 * 12_994_913_280 + 9 * kv) / H100.bandwidth
    assert found.steps[-1].seconds == pytest.approx(expected, rel=1e-6)
    linear = 42 * (4 * 5120**2 + 3 * 5120 * config.intermediate_size)
    attention = 42 * 4 * 5120 * (5600 * 5601 // 2)
    work = 2 * 5600 * linear + attention
    assert found.prefill_seconds == pytest.approx(work / H100.half_rate, rel=1e-6)
