"""gateway.sendqueue: waiting deltas merge, nothing is lost or reordered, and it is bounded."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gateway.protocol import Pong, TurnDelta, utf16_len
from gateway.sendqueue import SendQueue


@given(
    st.lists(
        st.none() | st.tuples(st.sampled_from("ab"), st.text("xy😀", min_size=1, max_size=3)),
        max_size=40,
    )
)
def test_merging_keeps_text_and_order(steps: list[tuple[str, str] | None]) -> None:
    """Each reply's text comes out whole, offsets fit, and control frames keep their places."""
    queue, offs, pushed = SendQueue(), {"a": 0, "b": 0}, 0
    for seq, step in enumerate(steps):
        if step is None:
            queue.push(Pong(n=seq))
            continue
        turn, text = step
        queue.push(TurnDelta(chat="c", turn=turn, seq=seq, off=offs[turn], text=text))
        offs[turn] += utf16_len(text)
        pushed += 1
    got, order = {"a": "", "b": ""}, list[int]()
    deltas = 0
    while len(queue):
        frame = queue.pop()
        if isinstance(frame, Pong):
            order.append(frame.n)
            continue
        assert isinstance(frame, TurnDelta)
        deltas += 1
        assert frame.off == utf16_len(got[frame.turn])
        assert frame.seq is not None
        order.append(frame.seq)
        got[frame.turn] += frame.text
    for turn in got:
        assert got[turn] == "".join(s[1] for s in steps if s and s[0] == turn)
    assert order == sorted(order)
    assert [n for n in order if steps[n] is None] == [n for n, s in enumerate(steps) if s is None]
    assert deltas <= pushed


def test_adjacent_deltas_become_one() -> None:
    """Two waiting deltas of a reply are one frame with the first offset and the last number."""
    queue = SendQueue()
    queue.push(TurnDelta(chat="c", turn="t", seq=4, off=0, text="Good "))
    queue.push(TurnDelta(chat="c", turn="t", seq=5, off=5, text="evening"))
    assert queue.pop() == TurnDelta(chat="c", turn="t", seq=5, off=0, text="Good evening")


def test_too_many_frames_overflow() -> None:
    """Frames that cannot merge overflow at their bound, and later ones are dropped."""
    queue = SendQueue(max_frames=3)
    for n in range(5):
        queue.push(Pong(n=n))
        assert queue.overflowed == (n >= 3)
    assert len(queue) == 4


def test_too_much_text_overflows() -> None:
    """Merged deltas overflow at the bound of their characters; taking some makes room."""
    queue = SendQueue(max_chars=10)
    queue.push(TurnDelta(chat="c", turn="t", off=0, text="12345678"))
    queue.pop()
    queue.push(TurnDelta(chat="c", turn="t", off=8, text="12345678"))
    assert not queue.overflowed
    queue.push(TurnDelta(chat="c", turn="t", off=16, text="123"))
    assert queue.overflowed
