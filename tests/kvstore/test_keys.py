"""Keys of prefixes."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore.api import Space
from kvstore.keys import TokenChain
from kvstore.testing import LAYOUT, chain

TOKENS = st.lists(st.integers(0, 2**31 - 2), max_size=60)


def test_golden() -> None:
    """The keys of a known sequence never change: stored files depend on them."""
    key = chain(range(21)).key(19)
    assert key.space.hex() == GOLDEN[0]
    assert key.digest.hex() == GOLDEN[1]
    assert (key.length, key.rolling) == (19, GOLDEN[2])
    assert chain(range(21)).key(16).digest.hex() == GOLDEN[3]
    assert chain([]).key(0).digest == b""


GOLDEN = (
    "b44d96ac6877b019d8f000cfd4b19f9d",
    "5ef4f9bbf65304b8966c21b19754025c",
    1176754665747894224,
    "817a871e9da92b57478286baad94fe0a",
)


def test_same_in_another_process() -> None:
    """Keys do not depend on the process or its hash seed."""
    program = "from kvstore.testing import chain; print(chain(range(30)).key(30))"
    seen = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert seen == {f"{chain(range(30)).key(30)}\n"}


@given(TOKENS, TOKENS)
def test_extend_is_append(first: list[int], more: list[int]) -> None:
    """Extending gives the keys of the whole sequence, at every length."""
    grown = chain(first)
    grown.extend(more)
    whole = chain(first + more)
    assert grown.tokens == whole.tokens
    for length in range(len(whole.tokens) + 1):
        assert grown.key(length) == whole.key(length)
        assert grown.key(length).rolling == grown.rolling(length)


@given(st.lists(st.integers(0, 3), max_size=40), st.lists(st.integers(0, 3), max_size=40))
def test_equal_exactly_for_equal_prefixes(a: list[int], b: list[int]) -> None:
    """Two chains have the same key at a length if and only if the prefixes are the same."""
    one, two = chain(a), chain(b)
    for length in range(1, min(len(a), len(b)) + 1):
        assert (one.key(length) == two.key(length)) == (a[:length] == b[:length])


@pytest.mark.parametrize("field", ["model", "weights", "tokenizer", "kv_layout", "kv_dtype"])
def test_every_part_of_the_space_counts(field: str) -> None:
    """A change of any part of the space changes every key."""
    parts = {k: "x" for k in ("model", "weights", "tokenizer", "kv_layout", "kv_dtype")}
    base = TokenChain(Space(**parts, tenant_salt=b"s"), LAYOUT, range(9))
    other = TokenChain(Space(**parts | {field: "y"}, tenant_salt=b"s"), LAYOUT, range(9))
    salted = TokenChain(Space(**parts, tenant_salt=b"z"), LAYOUT, range(9))
    keys = [c.key(9) for c in (base, other, salted)]
    assert len({k.space for k in keys}) == len({k.digest for k in keys}) == 3
    assert len({k.rolling for k in keys}) == 3


def test_parts_of_the_space_do_not_run_together() -> None:
    """ab+c and a+bc are different spaces."""
    a = Space("ab", "c", "", "", "", b"")
    b = Space("a", "bc", "", "", "", b"")
    assert a.digest() != b.digest()


def test_refuses_what_is_not_there() -> None:
    """A length beyond the chain and an id beyond 32 bits are refused."""
    with pytest.raises(IndexError, match="no prefix of 4"):
        chain(range(3)).key(4)
    with pytest.raises(OverflowError):
        chain([2**32])
