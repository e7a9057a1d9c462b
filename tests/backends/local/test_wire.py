"""Frames come back as they went, and anything else is a typed error."""

from __future__ import annotations

import struct
from pathlib import Path

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.api import (
    Capabilities,
    Finished,
    FinishReason,
    Message,
    Role,
    SampledTokens,
    Sampling,
    TextDelta,
    ThoughtDelta,
    Timings,
    Turn,
    Usage,
)
from backends.errors import BackendError, BackendErrorCode
from backends.local import wire
from backends.local.settings import EngineSettings

calls = st.integers(0, 2**40)
strings = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
floats = st.floats(0, 1e6)
messages = st.builds(Message, st.sampled_from(Role), strings, st.none() | strings)
ids = st.builds(SampledTokens, strings, st.lists(st.integers(0, 262143), max_size=4).map(tuple))
samplings = st.builds(
    Sampling,
    temperature=st.floats(0, 5),
    seed=st.none() | st.integers(0, 2**63 - 1),
    stop=st.lists(strings.filter(bool), max_size=3).map(tuple),
)


@st.composite
def turns(draw: st.DrawFn) -> Turn:
    said = tuple(draw(st.lists(messages, max_size=4)))
    sampled = tuple(draw(st.none() | ids) for _ in said) if draw(st.booleans()) else ()
    stable = draw(st.integers(0, len(said)))
    return Turn(
        draw(strings),
        said,
        draw(strings),
        stable=stable,
        sampling=draw(samplings),
        sampled=sampled,
        shared=draw(st.integers(0, stable)),
        persona=draw(strings),
    )


events = st.one_of(
    st.builds(TextDelta, strings),
    st.builds(ThoughtDelta, strings),
    st.builds(
        Finished,
        st.sampled_from(FinishReason),
        st.builds(
            Usage,
            prompt_tokens=st.integers(0, 9999),
            cached_by_tier=st.lists(st.tuples(strings, st.integers(0, 99)), max_size=2).map(tuple),
            miss=strings,
        ),
        st.builds(Timings, floats, floats, floats, floats, floats),
        st.none() | ids,
    ),
)
details = st.lists(
    st.tuples(strings, st.integers(-(2**60), 2**60) | floats | strings), max_size=3
).map(tuple)
to_worker = st.one_of(
    st.builds(wire.Start, st.builds(EngineSettings, st.just(Path("data")), strings)),
    st.builds(wire.Submit, calls, turns()),
    st.builds(wire.Cancel, calls),
    st.builds(wire.Count, calls, st.lists(strings, max_size=3).map(tuple)),
)
to_client = st.one_of(
    st.builds(wire.Progress, strings, calls, calls),
    st.builds(wire.Ready, st.builds(Capabilities, strings, st.integers(1, 9999))),
    st.builds(wire.Refused, strings),
    st.builds(wire.Event, calls, events),
    st.builds(
        wire.Failed,
        calls,
        st.sampled_from(BackendErrorCode),
        strings,
        st.booleans(),
        st.none() | floats,
        details,
    ),
    st.builds(wire.Counted, calls, st.lists(st.integers(0, 999), max_size=3).map(tuple)),
)


def bodies(data: bytes, step: int = 1 << 20) -> list[bytes]:
    frames = wire.Frames()
    return [b for i in range(0, len(data), step) for b in frames.feed(data[i : i + step])]


@settings(max_examples=80, deadline=None)
@given(sent=st.lists(to_worker, max_size=3), step=st.integers(1, 60))
def test_round_trip_to_worker(sent: list[wire.ToWorker], step: int) -> None:
    """Every message to the worker comes back equal, however the bytes arrive."""
    raw = b"".join(map(wire.encode, sent))
    assert [wire.read_to_worker(b) for b in bodies(raw, step)] == sent


@settings(max_examples=80, deadline=None)
@given(sent=st.lists(to_client, max_size=3), step=st.integers(1, 60))
def test_round_trip_to_client(sent: list[wire.ToClient], step: int) -> None:
    """Every message to the client comes back equal, however the bytes arrive."""
    raw = b"".join(map(wire.encode, sent))
    assert [wire.read_to_client(b) for b in bodies(raw, step)] == sent


@settings(max_examples=300, deadline=None)
@given(body=st.binary(max_size=60))
def test_garbage(body: bytes) -> None:
    """Random bytes are a WireError and nothing else."""
    for read in (wire.read_to_worker, wire.read_to_client):
        with pytest.raises(wire.WireError):
            read(body)


values = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | floats | strings,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(strings, inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=200, deadline=None)
@given(message=to_worker, data=st.data())
def test_one_field_wrong(message: wire.ToWorker, data: st.DataObject) -> None:
    """A frame with one value replaced reads as a message or is a WireError; it never half-reads."""
    raw = msgpack.unpackb(wire.encode(message)[4:])
    key = data.draw(st.sampled_from(sorted(raw)))
    raw[key] = data.draw(values)
    try:
        again = wire.read_to_worker(msgpack.packb(raw))
    except wire.WireError:
        return
    # A float field may have been given as an int; what reads must write the same again.
    assert msgpack.unpackb(wire.encode(again)[4:]) == raw


def test_unknown_key() -> None:
    """A key that the message does not have is refused by name."""
    body = msgpack.packb({"type": "Cancel", "call": 1, "force": True})
    with pytest.raises(wire.WireError, match="unknown key 'force'"):
        wire.read_to_worker(body)


def test_missing_key() -> None:
    """A key that the message needs is missed by name."""
    with pytest.raises(wire.WireError, match="no 'call'"):
        wire.read_to_worker(msgpack.packb({"type": "Cancel"}))


def test_wrong_direction() -> None:
    """A message of the other direction is an unknown type."""
    with pytest.raises(wire.WireError, match="unknown type 'Refused'"):
        wire.read_to_worker(wire.encode(wire.Refused("x"))[4:])


def test_value_out_of_range() -> None:
    """A value that the contract refuses is refused here too, with the place."""
    good = wire.Submit(1, Turn("t", (), "M"))
    raw = msgpack.unpackb(wire.encode(good)[4:])
    raw["turn"]["sampling"]["temperature"] = -1.0
    with pytest.raises(wire.WireError, match=r"turn\.sampling: .*temperature"):
        wire.read_to_worker(msgpack.packb(raw))


def test_bool_is_no_int() -> None:
    """True is not a number."""
    with pytest.raises(wire.WireError, match="bool in place of int"):
        wire.read_to_worker(msgpack.packb({"type": "Cancel", "call": True}))


def test_length_over_the_limit() -> None:
    """A frame that announces too much is refused before its body arrives."""
    with pytest.raises(wire.WireError, match="at most"):
        list(wire.Frames().feed(struct.pack(">I", wire.MAX_FRAME + 1)))


def test_too_large_to_send() -> None:
    """A message over the limit is refused where it is written."""
    with pytest.raises(wire.WireError, match="at most"):
        wire.encode(wire.Refused("x" * (wire.MAX_FRAME + 1)))


def test_lone_surrogate() -> None:
    """Text that is not Unicode cannot be written, and says so."""
    with pytest.raises(wire.WireError, match="cannot be written"):
        wire.encode(wire.Refused("\ud800"))


def test_error_comes_back() -> None:
    """A BackendError keeps all its fields over the wire."""
    error = BackendError(
        BackendErrorCode.CONTEXT_OVERFLOW,
        "too long",
        retryable=True,
        retry_after=1.5,
        detail={"prompt_tokens": 9, "context": 8},
    )
    message = wire.read_to_client(wire.encode(wire.Failed.of(3, error))[4:])
    assert isinstance(message, wire.Failed)
    again = message.error()
    assert (again.code, again.message, again.retryable, again.retry_after, again.detail) == (
        error.code,
        error.message,
        error.retryable,
        error.retry_after,
        error.detail,
    )
