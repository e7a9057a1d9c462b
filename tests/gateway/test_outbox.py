"""gateway.outbox: numbers without gaps, and a replay that is all or nothing."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gateway.outbox import Outbox
from gateway.protocol import ChatEvent, Place, TurnDelta


def delta(n: int) -> TurnDelta:
    return TurnDelta(chat="c", turn="t", off=n, text=str(n))


@given(count=st.integers(0, 30), keep=st.integers(1, 12), after=st.integers(0, 35))
def test_like_a_list(count: int, keep: int, after: int) -> None:
    """A replay equals the tail of a list of all events, or is None when some of it is gone."""
    box, everything = Outbox("e", keep), list[ChatEvent]()
    for n in range(count):
        event = box.append(delta(n))
        assert (event.epoch, event.seq, event.text) == ("e", n + 1, str(n))
        everything.append(event)
    gone = max(0, count - keep)
    expected = tuple(everything[after:]) if gone <= after <= count else None
    assert box.after(Place(epoch="e", seq=after)) == expected


def test_other_epoch() -> None:
    """A place in another epoch is never replayed."""
    box = Outbox("e")
    box.append(delta(0))
    assert box.after(Place(epoch="f", seq=0)) is None
