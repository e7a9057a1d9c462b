"""What an import refuses, and how findings are kept."""

from __future__ import annotations

import tracemalloc
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from personas.limits import Finding, Findings, ImportLimits, Inflater
from personas.persona import CardError


def test_findings_end() -> None:
    """Only so many findings are kept, each once."""
    findings = Findings(most=3)
    for number in (1, 1, 2, 3):
        findings.add("a", "b", where=str(number))
    assert findings.done() == (Finding("a", "1", "b"), Finding("a", "2", "b"))


def test_bomb_in_bounded_memory() -> None:
    """300 MB in 300 kB are refused at the cost of what is allowed."""
    packed = zlib.compress(bytes(300 << 20), 9)
    tracemalloc.start()
    try:
        with pytest.raises(CardError) as caught:
            Inflater(ImportLimits(ratio_floor=1 << 20, ratio=2)).inflate(
                packed, where="x", most=64 << 20
            )
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()
    assert caught.value.code == "inflate_bomb"


def test_budget_is_shared() -> None:
    """What one part takes another has not."""
    inflater = Inflater(ImportLimits(inflated_bytes=10))
    inflater.take(b"12345", where="a")
    inflater.inflate(zlib.compress(b"12345"), where="b", most=99)
    with pytest.raises(CardError):
        inflater.take(b"1", where="c")
    with pytest.raises(CardError):
        inflater.inflate(zlib.compress(b"1"), where="d", most=99)


def test_cut_off() -> None:
    """A stream that ends in the middle is broken, no shorter text."""
    with pytest.raises(CardError) as caught:
        Inflater(ImportLimits()).inflate(zlib.compress(b"12345")[:-1], where="x", most=99)
    assert caught.value.code == "bad_deflate"


@given(st.binary(max_size=200), st.integers(0, 200))
def test_most(data: bytes, most: int) -> None:
    """At most `most` bytes come out, and then all of them."""
    inflater = Inflater(ImportLimits())
    if len(data) > most:
        with pytest.raises(CardError):
            inflater.inflate(zlib.compress(data), where="x", most=most)
    else:
        assert inflater.inflate(zlib.compress(data), where="x", most=most) == data
