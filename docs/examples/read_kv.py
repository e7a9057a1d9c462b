"""Lists the records of a KV segment file; needs msgpack and xxhash, and nothing of Greenroom's.

python read_kv.py FOLDER/kv/gen-00000001/records
"""

from __future__ import annotations

import struct
import sys
from typing import TYPE_CHECKING

import msgpack
import xxhash

if TYPE_CHECKING:
    from collections.abc import Iterator

PREAMBLE = struct.Struct("<4sHHQ")
KEY = struct.Struct(">16sIIBQ16s")


def records(data: bytes) -> Iterator[tuple[int, int, int, list[int], bytes]]:
    """(group, first token, prefix length, token ids, payload) of every whole record."""
    at = 0
    while at + PREAMBLE.size <= len(data):
        magic, version, size, checksum = PREAMBLE.unpack_from(data, at)
        header = data[at + PREAMBLE.size : at + PREAMBLE.size + size]
        if magic != b"GRKV" or version != 3 or xxhash.xxh3_64_intdigest(header) != checksum:
            at += 64  # a deleted record, or the end of one that was cut short
            continue
        key, ids, _owner, length, expected = msgpack.unpackb(header)
        start = at - (-(PREAMBLE.size + size) // 64) * 64
        payload = data[start : start + length]
        if len(payload) == length and xxhash.xxh3_64_intdigest(payload) == expected:
            _space, end, first, group, _rolling, _digest = KEY.unpack(key)
            yield group, first, end, list(struct.unpack(f"<{len(ids) // 4}I", ids)), payload
        at = start - (-length // 64) * 64


def main() -> None:
    with open(sys.argv[1], "rb") as file:
        data = file.read()
    for group, first, end, ids, payload in records(data):
        print(f"group {group}, tokens [{first}, {end}): {len(payload)} bytes, ids {ids[:4]}...")


if __name__ == "__main__":
    main()
