"""Server-sent events."""

from __future__ import annotations

import itertools
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from backends.sse import Event, EventTooLong, SseDecoder

LINES = st.lists(st.text(alphabet="ab :\u00e9", max_size=6), min_size=1, max_size=3)
PIECES = st.sampled_from(
    [
        b"\r",
        b"\n",
        b"\r\n",
        b"data:",
        b"data: ",
        b"event:",
        b": ",
        b"id: 1",
        b"x",
        b"\xc3\xa9",
        b" ",
    ]
)
CUTS = st.lists(st.integers(0, 200), max_size=20)


def decode(sent: bytes, cuts: list[int], limit: int = 1 << 20) -> tuple[list[Event], bool]:
    """The events of `sent`, cut at `cuts`, and whether it was refused after them."""
    marks = sorted({min(cut, len(sent)) for cut in cuts} | {0, len(sent)})
    decoder = SseDecoder(limit)
    events = []
    try:
        for start, stop in itertools.pairwise(marks):
            for event in decoder.feed(sent[start:stop]):
                events.append(event)  # noqa: PERF402 - extend would lose those before an error
    except EventTooLong:
        return events, True
    return events, False


def reference(sent: bytes) -> list[Event]:
    """The standard's algorithm over the whole text at once."""
    events: list[Event] = []
    data: list[str] = []
    name = ""
    for line in re.split("\r\n|\r|\n", sent.decode(errors="replace"))[:-1]:
        field, _, value = line.partition(":")
        if not line:
            if data:
                events.append(Event("\n".join(data), name or "message"))
            data, name = [], ""
        elif field == "data":
            data.append(value.removeprefix(" "))
        elif field == "event":
            name = value.removeprefix(" ")
    return events


@given(LINES, st.sampled_from(["\n", "\r\n", "\r"]), CUTS)
def test_data_comes_back(lines: list[str], end: str, cuts: list[int]) -> None:
    """What was put in data lines comes back, whatever ends a line; comments do not."""
    sent = "".join(f"data: {line}{end}" for line in lines) + f": ping{end}{end}"
    assert decode(sent.encode(), cuts) == ([Event("\n".join(lines))], False)


@given(st.lists(PIECES, max_size=40).map(b"".join), CUTS)
@example(b"data: a\r\n\ndata: b\n\n", list(range(40)))
def test_any_split_gives_the_standards_events(sent: bytes, cuts: list[int]) -> None:
    """However the bytes are cut, also at every one, the events are those of the whole text."""
    expected = reference(sent)
    assert decode(sent, cuts) == (expected, False)
    assert decode(sent, list(range(len(sent)))) == (expected, False)


@given(st.lists(PIECES, max_size=40).map(b"".join), CUTS, st.integers(1, 20))
def test_any_split_is_refused_at_the_same_event(sent: bytes, cuts: list[int], limit: int) -> None:
    """Under a tight limit every split gives the same events, then the same refusal or none."""
    assert decode(sent, cuts, limit) == decode(sent, [], limit)


def test_names_and_comments() -> None:
    """Names are kept, comments dropped, and the space after the colon is optional."""
    sent = b": hello\r\nevent: ping\r\ndata:one\r\ndata: two\r\n\r\ndata: [DONE]\n\n"
    assert decode(sent, []) == ([Event("one\ntwo", "ping"), Event("[DONE]")], False)


def test_an_event_without_an_end_is_refused() -> None:
    """An endless line and an endless event end in a typed error that has the limit."""
    with pytest.raises(EventTooLong) as caught:
        list(SseDecoder(limit=100).feed(b"data: " + b"x" * 200))
    assert caught.value.limit == 100
    decoder = SseDecoder(limit=100)
    for _ in range(14):
        assert list(decoder.feed(b"data: x\n")) == []
    with pytest.raises(EventTooLong):
        list(decoder.feed(b"data: x\n"))


def test_pings_are_free() -> None:
    """Comments do not add up to an event that is too long, however many there are."""
    decoder = SseDecoder(limit=100)
    for _ in range(100):
        assert list(decoder.feed(b": still here\n")) == []


def test_unfinished_event_is_kept_back() -> None:
    """An event without its blank line is not given."""
    assert decode(b"data: half\n", []) == ([], False)
