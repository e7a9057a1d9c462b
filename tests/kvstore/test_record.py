"""The bytes of a block."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore.api import Block, BlockKey, PrefixKey
from kvstore.errors import RecordDamaged
from kvstore.record import decode, decode_key, encode, encode_key, payload_sum
from kvstore.testing import blocks, chain

KEYS = st.builds(
    lambda space, digest, start, tokens, rolling, group: BlockKey(
        PrefixKey(space, digest, start + tokens, rolling), start, group
    ),
    st.binary(min_size=16, max_size=16),
    st.binary(min_size=16, max_size=16),
    st.integers(0, 100_000),
    st.integers(1, 64),
    st.integers(0, 2**61),
    st.integers(0, 255),
)


@given(KEYS, st.binary(max_size=300))
def test_round_trip(key: BlockKey, payload: bytes) -> None:
    """What is encoded is what is decoded, its payload aligned to 64 bytes."""
    block = Block(key, tuple(range(key.tokens)), payload)
    record = encode(block)
    assert decode(record) == block
    assert (len(record) - len(payload)) % 64 == 0
    assert decode_key(encode_key(key)) == key


def test_every_flipped_bit_is_found() -> None:
    """A record with any one bit flipped is damaged, never another block."""
    record = encode(blocks(chain(range(3)))[1])
    for index in range(len(record)):
        for bit in range(8):
            hurt = bytearray(record)
            hurt[index] ^= 1 << bit
            with pytest.raises(RecordDamaged):
                decode(bytes(hurt))


def test_every_truncation_is_found() -> None:
    """A record cut anywhere, or with a byte more, is damaged."""
    record = encode(blocks(chain(range(3)))[0])
    for end in range(len(record)):
        with pytest.raises(RecordDamaged):
            decode(record[:end])
    with pytest.raises(RecordDamaged):
        decode(record + b"\0")


@given(st.binary(max_size=400))
def test_garbage_is_damaged(raw: bytes) -> None:
    """Bytes that nobody encoded are damaged, and nothing else is raised."""
    with pytest.raises(RecordDamaged):
        decode(b"GRKV" + raw)
    with pytest.raises(RecordDamaged):
        decode(raw)


@given(st.binary(max_size=100))
def test_sum_is_what_the_format_says(payload: bytes) -> None:
    """The payload's sum is the documented one, word by word."""
    padded = payload + bytes(-len(payload) % 8)
    words = [int.from_bytes(padded[i : i + 8], "little") for i in range(0, len(padded), 8)]
    total = sum((2 * i + 1) * 0x9E3779B97F4A7C15 * word for i, word in enumerate(words))
    assert payload_sum(payload) == total % 2**64


def test_sum_sees_swapped_words() -> None:
    """Two swapped words change the sum."""
    words = np.arange(1, 9, dtype="<u8")
    swapped = words.copy()
    swapped[[2, 5]] = swapped[[5, 2]]
    assert payload_sum(words.tobytes()) != payload_sum(swapped.tobytes())
