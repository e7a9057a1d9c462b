"""Leaving alone what has failed."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kvstore.breaker import Breaker


def test_opens_waits_and_closes() -> None:
    """A failure closes the door for a while; one may look in, and its success opens it."""
    breaker = Breaker(first_pause=1.0)
    assert breaker.allows(0.0)
    breaker.failed(0.0)
    assert not breaker.is_closed
    assert not breaker.allows(0.9)
    assert breaker.allows(1.0)
    assert not breaker.allows(1.5)  # one at a time
    breaker.succeeded()
    assert breaker.is_closed
    assert breaker.allows(1.5)


@given(st.integers(1, 30))
def test_pauses_double_up_to_a_bound(failures: int) -> None:
    """Each failure in a row doubles the pause, never beyond the longest."""
    breaker = Breaker(first_pause=1.0, longest_pause=60.0)
    now, pause = 0.0, 0.0
    for n in range(failures):
        assert breaker.allows(now)
        breaker.failed(now)
        pause = min(60.0, 2.0**n)
        assert not breaker.allows(now + pause - 0.01)
        now += pause
    assert breaker.allows(now)
