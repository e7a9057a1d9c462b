"""What the vectors are made of: cards, PNG chunks, zip files, EXIF; standard library only.

Nothing is compressed by a library, since two releases of zlib may pack the same bytes in two ways:
what must be deflated is stored in deflate's own uncompressed blocks, and the bombs are spelt out.
Sources: RFC 1950 and 1951, PNG third edition, PKWARE APPNOTE 6.3, TIFF 6.0, Exif 2.32.
"""

from __future__ import annotations

import base64
import json
import struct
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from personas.persona import JsonValue

SIGNATURE = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True, slots=True)
class Case:
    """One vector: a file, the rows of the table in README.md it is for, and what must come of it.

    `claims` are written by hand, before any reader has read the file; README.md lists their keys.
    `says` are the lines of the chat after the greeting; those that begin with `:` are replies.
    `context` is the room for the prompt, in the words of README.md.
    """

    name: str
    what: str
    rows: tuple[int, ...]
    ending: str
    raw: bytes
    claims: Mapping[str, JsonValue]
    says: tuple[str, ...] = ("Good evening.",)
    context: int = 100_000


def fields(**data: JsonValue) -> dict[str, JsonValue]:
    """The fields of a small character, some of them replaced."""
    small: dict[str, JsonValue] = {
        "name": "Ilse",
        "description": "{{char}} keeps the ferry at Low Sill.",
        "personality": "patient, dry",
        "scenario": "A cold evening at the landing.",
        "first_mes": "Mind the rope, {{user}}.",
        "mes_example": "<START>\n{{user}}: Late?\n{{char}}: The river is never late.",
    }
    return small | data


def card(spec: JsonValue = "chara_card_v3", version: JsonValue = "3.0", /, **data: JsonValue) -> (
    dict[str, JsonValue]
):  # fmt: skip
    """A small card in a wrapper."""
    return {"spec": spec, "spec_version": version, "data": fields(**data)}


def dump(value: JsonValue) -> bytes:
    """JSON in ASCII, so that nothing depends on an editor."""
    return json.dumps(value, indent=1).encode() + b"\n"


def book(*entries: JsonValue, **knobs: JsonValue) -> dict[str, JsonValue]:
    """A lorebook of these entries."""
    return {"extensions": {}, "entries": [*entries], **knobs}


def entry(keys: JsonValue, content: str, **knobs: JsonValue) -> dict[str, JsonValue]:
    """One entry of a lorebook."""
    plain: dict[str, JsonValue] = {
        "keys": keys,
        "content": content,
        "extensions": {},
        "enabled": True,
        "insertion_order": 10,
        "use_regex": False,
    }
    return plain | knobs


def stored(data: bytes) -> bytes:
    """A raw deflate stream of uncompressed blocks (RFC 1951, 3.2.4)."""
    parts = [data[at : at + 0xFFFF] for at in range(0, len(data), 0xFFFF)] or [b""]
    sizes = ((number == len(parts) - 1, len(part), part) for number, part in enumerate(parts))
    return b"".join(struct.pack("<BHH", last, size, size ^ 0xFFFF) + p for last, size, p in sizes)


def wrapped(data: bytes) -> bytes:
    """The same as a zlib stream."""
    return b"\x78\x01" + stored(data) + struct.pack(">I", zlib.adler32(data))


def zeros(repeats: int) -> bytes:
    """A raw deflate stream of `1 + 258 * 4 * repeats` zero bytes, one byte for each 1,032.

    One block with codes of its own (RFC 1951, 3.2.7): the literal 0 and the end of the block have
    two bits each, a copy of 258 bytes from one byte before has one, and its distance one.
    """
    bits: list[int] = []

    def put(value: int, count: int) -> None:
        bits.extend(value >> at & 1 for at in range(count))

    put(1, 1)  # the last block
    put(2, 2)  # of codes of its own
    put(286 - 257, 5)
    put(0, 5)  # one distance
    # Codes of the code lengths, in the order 16 17 18 0 8 7 9 6 10 5 11 4 12 3 13 2 14 1: only
    # 18 (1 bit), 2 (2 bits) and 1 (2 bits) are used.
    lengths = {18: 1, 2: 2, 1: 2}
    order = (16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1)
    put(len(order) - 4, 4)
    for symbol in order:
        put(lengths.get(symbol, 0), 3)
    # Huffman codes go in with their highest bit first: 18 is 0, 1 is 10, 2 is 11.
    one, two, many = (1, 0), (1, 1), (0,)

    def skip(count: int) -> None:
        bits.extend(many)
        put(count - 11, 7)

    bits.extend(two)  # literal 0
    skip(138)
    skip(117)  # 1 … 255
    bits.extend(two)  # 256, the end
    skip(28)  # 257 … 284
    bits.extend(one)  # 285, the copy
    bits.extend(one)  # distance 1
    bits.extend((1, 0))  # the literal 0: copy is 0, then 0 -> 10, 256 -> 11
    bits.extend((0, 0) * 4 * repeats)
    bits.extend((1, 1))
    bits.extend((0,) * (-len(bits) % 8))
    packed = bytearray()
    for at in range(0, len(bits), 8):
        packed.append(sum(bit << place for place, bit in enumerate(bits[at : at + 8])))
    return bytes(packed)


def chunk(kind: bytes, body: bytes, *, crc: int | None = None) -> bytes:
    """One PNG chunk; `crc` replaces the right checksum."""
    found = zlib.crc32(kind + body) if crc is None else crc
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", found)


def text(payload: JsonValue, keyword: bytes = b"ccv3") -> bytes:
    """A tEXt chunk with base64 of a card in it."""
    return chunk(b"tEXt", keyword + b"\0" + base64.b64encode(dump(payload)))


def png(*before: bytes, after: Iterable[bytes] = (), end: bytes = b"") -> bytes:
    """A grey PNG of four pixels with chunks before and after the picture, bytes after its end."""
    head = struct.pack(">IIBBBBB", 2, 2, 8, 0, 0, 0, 0)
    rows = wrapped(b"\0\x60\x60" * 2)
    parts = [chunk(b"IHDR", head), *before, chunk(b"IDAT", rows), *after, chunk(b"IEND", b"")]
    return SIGNATURE + b"".join(parts) + end


@dataclass(frozen=True, slots=True)
class Member:
    """A file of an archive; `size` and `flags` replace what would be true."""

    path: str
    data: bytes
    packed: bytes | None = None
    size: int | None = None
    flags: int = 0x800


def archive(*members: Member, prefix: bytes = b"") -> bytes:
    """A zip file, deflated where a member is `packed`; offsets count from the archive's start."""
    body, directory = b"", b""
    for each in members:
        name, method = each.path.encode(), 0 if each.packed is None else 8
        data = each.data if each.packed is None else each.packed
        size = len(each.data) if each.size is None else each.size
        crc = zlib.crc32(each.data)
        shared = struct.pack(
            "<HHHHHIIIHH", 20, each.flags, method, 0, 0x21, crc, len(data), size, len(name), 0
        )
        directory += b"PK\1\2" + struct.pack("<H", 20) + shared
        directory += struct.pack("<HHHII", 0, 0, 0, 0, len(body)) + name
        body += b"PK\3\4" + shared + name + data
    count = len(members)
    end = struct.pack("<4sHHHHIIH", b"PK\5\6", 0, 0, count, count, len(directory), len(body), 0)
    return prefix + body + directory + end


def charx(value: JsonValue, *more: Member, prefix: bytes = b"") -> bytes:
    """A CHARX archive of a card and other members."""
    return archive(Member("card.json", dump(value)), *more, prefix=prefix)


def tiff(comment: bytes, *, charset: bytes = b"ASCII\0\0\0", order: str = "<") -> bytes:
    """An EXIF structure with a user comment."""
    value = charset + comment
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "L", 8)
    pointer = struct.pack(order + "HHHLLL", 1, 0x8769, 4, 1, 26, 0)
    inner = struct.pack(order + "HHHLLL", 1, 0x9286, 7, len(value), 44, 0)
    return head + pointer + inner + value


def jpeg(exif: bytes = b"") -> bytes:
    """A JPEG of EXIF and an end, without a picture."""
    body = b"Exif\0\0" + exif
    app1 = b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body if exif else b""
    return b"\xff\xd8" + app1 + b"\xff\xda\0\2\xff\xd9"


def webp(exif: bytes = b"") -> bytes:
    """A WEBP with EXIF, without a picture."""
    inner = b"VP8X" + struct.pack("<L", 10) + bytes(10)
    if exif:
        inner += b"EXIF" + struct.pack("<L", len(exif)) + exif + b"\0" * (len(exif) % 2)
    return b"RIFF" + struct.pack("<L", len(inner) + 4) + b"WEBP" + inner
