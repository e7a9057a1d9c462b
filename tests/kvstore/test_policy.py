"""Restore or recompute."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kvstore.policy import DEADLINE_SECONDS, LEAST_DEADLINE_SECONDS, Policy

MIB = 1 << 20


def test_the_unknown_is_tried() -> None:
    """While nothing was measured, restoring is worth it, for so long at most."""
    policy = Policy()
    assert policy.worth(1, {"disk": 1 << 40})
    assert policy.deadline(1000) == DEADLINE_SECONDS
    assert policy.saved_ms(1000, 5.0) == 0.0


def test_the_faster_way_wins() -> None:
    """A restore is worth it exactly while it takes no longer than computing."""
    policy = Policy()
    policy.observe_prefill(1000, 1.0)
    policy.observe_restore("disk", 100 * MIB, 1.0)
    assert policy.worth(1000, {"disk": 99 * MIB})
    assert not policy.worth(1000, {"disk": 102 * MIB})
    assert policy.saved_ms(1000, 400.0) == 600.0
    assert policy.deadline(1000) == 1.0
    assert policy.deadline(1) == LEAST_DEADLINE_SECONDS


def test_a_slow_tier_gets_another_chance() -> None:
    """A tier that was slow once is tried again after it was passed over for a while."""
    policy = Policy()
    policy.observe_prefill(1000, 1.0)
    policy.observe_restore("far", MIB, 100.0)
    tries = next(n for n in range(1000) if policy.worth(1000, {"far": MIB}))
    assert 10 < tries < 100


@given(st.lists(st.tuples(st.integers(16, 5000), st.floats(1e-3, 10.0)), min_size=1))
def test_averages_stay_among_what_was_seen(seen: list[tuple[int, float]]) -> None:
    """Whatever was observed, the estimate lies between the slowest and the fastest."""
    policy = Policy()
    for tokens, seconds in seen:
        policy.observe_prefill(tokens, seconds)
    rates = [tokens / seconds for tokens, seconds in seen]
    estimate = policy.prefill_seconds(1000)
    assert estimate is not None
    assert 999.0 / max(rates) <= estimate <= 1001.0 / min(rates)


def test_small_samples_say_nothing() -> None:
    """A tiny restore or prefill is all latency and changes no average."""
    policy = Policy()
    policy.observe_restore("disk", 100, 10.0)
    policy.observe_prefill(1, 10.0)
    assert policy.worth(1, {"disk": 1 << 40})
    assert policy.prefill_seconds(1) is None
