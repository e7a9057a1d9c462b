"""The bytes of a block."""

from __future__ import annotations

import struct
from dataclasses import replace
from random import Random

import msgpack
import pytest
import xxhash
from hypothesis import assume, given
from hypothesis import strategies as st

from kvstore.api import Block, BlockKey, PrefixKey
from kvstore.errors import RecordDamaged
from kvstore.record import decode, decode_head, decode_key, encode, encode_key
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


@given(KEYS, st.binary(max_size=300), st.sampled_from([b"", b"o" * 16]))
def test_round_trip(key: BlockKey, payload: bytes, owner: bytes) -> None:
    """What is encoded is what is decoded, its payload aligned to 64 bytes."""
    block = Block(key, bytes(range(key.tokens)) * 4, payload, owner)
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


def big(seed: int = 0) -> Block:
    """A block of 64 tokens with 16 KiB of noise."""
    of = chain(range(64))
    return Block(BlockKey(of.key(64), 0, 0), of.ids(0, 64), Random(seed).randbytes(1 << 14))


@pytest.mark.parametrize("step", [2, 4, 8, 64, 512, 4096])
def test_every_kth_byte_flipped_is_found(step: int) -> None:
    """Damage in a regular pattern, of the top bit alone too, does not cancel out."""
    record = encode(big())
    first = len(record) - (1 << 14)
    for offset in range(min(step, 16)):
        for mask in (0x01, 0x80, 0xFF):
            hurt = bytearray(record)
            for index in range(first + offset, len(hurt), step):
                hurt[index] ^= mask
            with pytest.raises(RecordDamaged):
                decode(bytes(hurt))


@given(st.data())
def test_torn_record_is_found(data: st.DataObject) -> None:
    """A record that goes on as another, or as zeros, is damaged wherever it is torn."""
    one, other = encode(big(1)), encode(big(2))
    at = data.draw(st.integers(1, len(one) - 1))
    for torn in (one[:at] + other[at:], one[:at] + bytes(len(one) - at)):
        assume(torn not in (one, other))
        with pytest.raises(RecordDamaged):
            decode(torn)


KEY, IDS, OWNER = encode_key(big().key), bytes(256), b"o" * 16


@pytest.mark.parametrize(
    "header",
    [
        [],
        17,
        {"key": 1},
        [b"", b"", b"", 0, 0],
        ["text" * 20, b"", b"", 0, 0],
        [KEY, "ids", b"", 0, 0],
        [KEY, b"odd", b"", 0, 0],
        [KEY, IDS, "owner", 0, 0],
        [KEY, IDS, b"short", 0, 0],
        [KEY, IDS, OWNER, "0", 0],
        [KEY, IDS, OWNER, 0, None],
        [KEY, IDS, OWNER, -1, 0],
        [KEY, bytes(252), OWNER, 0, 0],
        [KEY, IDS, OWNER, 0, 0, 0],
    ],
)
def test_header_of_wrong_shape_is_damaged(header: object) -> None:
    """A header whose checksum is right and whose content is not is damaged, nothing else."""
    raw = msgpack.packb(header)
    sealed = struct.pack("<4sHHQ", b"GRKV", 3, len(raw), xxhash.xxh3_64_intdigest(raw)) + raw
    with pytest.raises(RecordDamaged):
        decode(sealed + bytes(-len(sealed) % 64))


def test_head_alone() -> None:
    """The first bytes of a record tell everything but the payload, and whether that fits."""
    block = big()
    record = encode(block)
    head = decode_head(record[:-1000])
    assert (head.key, head.ids, head.owner) == (block.key, block.ids, block.owner)
    assert head.size + head.payload_bytes == len(record)
    assert head.fits(record[head.size :])
    assert not head.fits(record[head.size : -1])
    assert not head.fits(record[head.size : -1] + b"\xff")


def test_documented_layout() -> None:
    """A record is what docs/kv-record.md says, read here without our decoder."""
    block = replace(big(), owner=OWNER)
    record = encode(block)
    magic, version, size, checksum = struct.unpack_from("<4sHHQ", record)
    assert (magic, version) == (b"GRKV", 3)
    header = record[16 : 16 + size]
    assert xxhash.xxh3_64_intdigest(header) == checksum
    key, ids, owner, length, expected = msgpack.unpackb(header)
    payload = record[-(-(16 + size) // 64) * 64 :]
    assert key == encode_key(block.key)
    assert (ids, owner) == (block.ids, block.owner)
    assert (len(payload), xxhash.xxh3_64_intdigest(payload)) == (length, expected)
    assert payload == block.payload


def test_xxh3_is_the_published_one() -> None:
    """Golden values, so that no other hash can take its place in files unnoticed."""
    assert xxhash.xxh3_64_intdigest(b"") == 0x2D06800538D394C2
    assert xxhash.xxh3_64_intdigest(b"greenroom") == 0x8FE15A92D509E7FB
