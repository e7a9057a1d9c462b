"""The bytes of one block, the same in every tier that keeps bytes. Documented in docs/kv-record.md.

    offset  size  what
    0       4     b"GRKV"
    4       2     format version (1)
    6       2     header length h
    8       4     CRC-32 of the header
    12      h     header: a msgpack array, see `_Header`
    ..            zeros up to a multiple of 64
    ..            payload

Integers are little-endian. Any damaged byte is found: the header by its CRC, the padding by being
zero, the payload by its sum, everything by its exact length.
"""

from __future__ import annotations

import struct
import zlib

import msgpack
import numpy as np

from kvstore.api import Block, BlockKey, PrefixKey
from kvstore.errors import RecordDamaged

__all__ = ["VERSION", "decode", "decode_key", "encode", "encode_key", "payload_sum"]

MAGIC = b"GRKV"
VERSION = 1
ALIGN = 64
MAX_TOKENS = 4096
_PREAMBLE = struct.Struct("<4sHHI")
_KEY = struct.Struct(">16sIIBQ16s")
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def encode_key(key: BlockKey) -> bytes:
    """49 bytes that name a block: space, length, start, group, rolling, digest (big-endian)."""
    prefix = key.prefix
    return _KEY.pack(
        prefix.space, prefix.length, key.start, key.group, prefix.rolling, prefix.digest
    )


def decode_key(raw: bytes) -> BlockKey:
    """Raises `RecordDamaged` when these are not the bytes of a key."""
    try:
        space, length, start, group, rolling, digest = _KEY.unpack(raw)
    except struct.error as error:
        raise RecordDamaged(f"not a block key: {error}") from None
    if not 0 <= start < length <= start + MAX_TOKENS:
        raise RecordDamaged(f"not a block key: tokens [{start}, {length})")
    return BlockKey(PrefixKey(space, digest, length, rolling), start, group)


def payload_sum(payload: bytes | memoryview) -> int:
    """Weighted sum of the payload's 64-bit words, modulo 2**64: sum((2i + 1) * G * word[i]).

    The payload is zero-padded to whole words; G is 0x9E3779B97F4A7C15. Odd weights make every
    single-word change visible; position-dependent ones make swaps visible. About ten times as fast
    here as CRC-32, near the speed of memory.
    """
    view = memoryview(payload).cast("B")
    whole = len(view) // 8 * 8
    words = np.frombuffer(view[:whole], "<u8")
    weights = _weights(len(words))
    total = int(np.dot(words, weights)) if len(words) else 0
    if whole < len(view):
        last = int.from_bytes(view[whole:], "little")
        total += last * ((2 * len(words) + 1) * int(_GOLDEN))
    return total % (1 << 64)


_cached_weights = np.empty(0, np.uint64)


def _weights(count: int) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    # Grown once to the largest block seen; a pure function's cache, so a race is harmless.
    global _cached_weights
    if len(_cached_weights) < count:
        _cached_weights = (
            np.arange(count, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
        ) * _GOLDEN
    return _cached_weights[:count]


def encode(block: Block) -> bytes:
    """The record of a block."""
    ids = np.asarray(block.token_ids, "<u4").tobytes()
    payload = memoryview(block.payload).cast("B")
    header = msgpack.packb(
        [encode_key(block.key), ids, len(payload), payload_sum(payload)], use_bin_type=True
    )
    preamble = _PREAMBLE.pack(MAGIC, VERSION, len(header), zlib.crc32(header))
    padding = bytes(-(len(preamble) + len(header)) % ALIGN)
    return b"".join((preamble, header, padding, payload))


def decode(record: bytes | memoryview) -> Block:
    """The block of a record; its payload is a copy. Raises `RecordDamaged`, never anything else."""
    view = memoryview(record).cast("B")
    if len(view) < _PREAMBLE.size:
        raise RecordDamaged(f"record of {len(view)} bytes")
    magic, version, header_length, crc = _PREAMBLE.unpack_from(view)
    if magic != MAGIC or version != VERSION:
        raise RecordDamaged("not a record of this version")
    header = bytes(view[_PREAMBLE.size : _PREAMBLE.size + header_length])
    if len(header) != header_length or zlib.crc32(header) != crc:
        raise RecordDamaged("header does not match its checksum")
    try:
        raw_key, raw_ids, length, expected = msgpack.unpackb(header, raw=False, max_ext_len=0)
        key = decode_key(raw_key)
        ids = tuple(np.frombuffer(raw_ids, "<u4").tolist())
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise RecordDamaged(f"header: {error}") from None
    start = -(-(_PREAMBLE.size + header_length) // ALIGN) * ALIGN
    if any(view[_PREAMBLE.size + header_length : start]):
        raise RecordDamaged("padding is not zero")
    if len(view) != start + length or len(ids) != key.tokens:
        raise RecordDamaged(f"record of {len(view)} bytes, {len(ids)} ids")
    payload = bytes(view[start:])
    if payload_sum(payload) != expected:
        raise RecordDamaged("payload does not match its sum")
    return Block(key, ids, payload)
