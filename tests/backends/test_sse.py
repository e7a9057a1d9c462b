"""Server-sent events."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.sse import Event, EventTooLong, SseDecoder

LINES = st.lists(st.text(alphabet="ab :\u00e9", max_size=6), min_size=1, max_size=3)


@given(
    st.lists(LINES, max_size=5),
    st.sampled_from(["\n", "\r\n", "\r"]),
    st.lists(st.integers(0, 200), max_size=20),
)
def test_any_split_gives_the_same_events(
    events: list[list[str]], end: str, cuts: list[int]
) -> None:
    """However the bytes are cut, and whatever ends a line, the same events come out."""
    sent = "".join(
        "".join(f"data: {line}{end}" for line in lines) + f": ping{end}{end}" for lines in events
    ).encode()
    marks = sorted({min(cut, len(sent)) for cut in cuts} | {0, len(sent)})
    decoder = SseDecoder()
    got = [
        event
        for start, stop in itertools.pairwise(marks)
        for event in decoder.feed(sent[start:stop])
    ]
    assert got == [Event("\n".join(lines)) for lines in events]


def test_byte_by_byte() -> None:
    """One byte at a time works too, with names, comments and no space after the colon."""
    sent = b": hello\r\nevent: ping\r\ndata:one\r\ndata: two\r\n\r\ndata: [DONE]\n\n"
    decoder = SseDecoder()
    got = [event for byte in sent for event in decoder.feed(bytes([byte]))]
    assert got == [Event("one\ntwo", "ping"), Event("[DONE]")]


def test_an_event_without_an_end_is_refused() -> None:
    """An endless line and an endless event end in a typed error."""
    with pytest.raises(EventTooLong):
        SseDecoder(limit=100).feed(b"data: " + b"x" * 200)
    decoder = SseDecoder(limit=100)
    for _ in range(14):
        assert decoder.feed(b"data: x\n") == []
    with pytest.raises(EventTooLong):
        decoder.feed(b"data: x\n")


def test_unfinished_event_is_kept_back() -> None:
    """An event without its blank line is not given."""
    assert SseDecoder().feed(b"data: half\n") == []
