"""PNG and APNG as a list of chunks: finding cards in them, and writing cards into them.

Source: Portable Network Graphics specification, third edition, sections 5 (datastream) and 11.3.3
(textual chunks). Pictures are not decoded here.
"""

from __future__ import annotations

import re
import struct
import zlib
from typing import TYPE_CHECKING, NamedTuple

from personas.persona import CardError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from personas.limits import Findings, ImportLimits, Inflater

__all__ = [
    "SIGNATURE",
    "Chunk",
    "Text",
    "bare_picture",
    "blank",
    "read_chunks",
    "size",
    "texts",
    "with_texts",
]

SIGNATURE = b"\x89PNG\r\n\x1a\n"

_PICTURE = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
_TEXTUAL = (b"tEXt", b"zTXt", b"iTXt")
_WANTED = re.compile(rb"chara|ccv3|chara-ext-asset_:?.*", re.IGNORECASE | re.DOTALL)


class Chunk(NamedTuple):
    """One chunk: its four-letter type, where it begins in the file, its data."""

    type: bytes
    offset: int
    body: memoryview


class Text(NamedTuple):
    """A textual chunk about a card: keyword in lower case (an asset's path keeps its case)."""

    keyword: str
    body: bytes
    where: str


def read_chunks(raw: bytes, limits: ImportLimits, findings: Findings) -> list[Chunk]:
    """The chunks up to IEND; nothing is copied or inflated.

    A wrong checksum is a finding, no error: writers of cards get it wrong, and the card says
    itself whether it is whole. So is a file that ends in the middle of a chunk (the part is left
    out) and bytes after IEND. Raises `CardError`: `not_png`, `too_many_chunks`, `chunk_too_large`
    (textual chunks only).
    """
    if not raw.startswith(SIGNATURE):
        raise CardError("not_png", "the file does not begin as a PNG does")
    whole = memoryview(raw)
    chunks: list[Chunk] = []
    at = len(SIGNATURE)
    while at < len(raw):
        if len(chunks) >= limits.png_chunks:
            raise CardError("too_many_chunks", f"the PNG has more than {limits.png_chunks} chunks")
        head = raw[at : at + 8]
        size = int.from_bytes(head[:4], "big")
        end = at + 12 + size
        if len(head) < 8 or end > len(raw):
            findings.add("truncated_png", f"the PNG ends inside a chunk at byte {at}")
            break
        kind = head[4:]
        name = f"{kind.decode('latin-1')!r} at byte {at}"
        if kind in _TEXTUAL and size > limits.chunk_bytes:
            message = f"{name} has {size} bytes, more than {limits.chunk_bytes}"
            raise CardError("chunk_too_large", message, where=name)
        if zlib.crc32(whole[at + 4 : end - 4]) != int.from_bytes(whole[end - 4 : end], "big"):
            findings.add("bad_crc", f"{name} has a wrong checksum", where=name)
        chunks.append(Chunk(kind, at, whole[at + 8 : end - 4]))
        at = end
        if kind == b"IEND":
            if at < len(raw):
                findings.add("bytes_after_end", f"{len(raw) - at} bytes after the PNG's end")
            break
    else:
        findings.add("no_end", "the PNG has no IEND chunk")
    return chunks


def texts(
    chunks: Iterable[Chunk], limits: ImportLimits, inflater: Inflater, findings: Findings
) -> Iterator[Text]:
    """The `chara`, `ccv3` and asset texts, in the order of the file; others are never inflated.

    Where they stand is no finding: SillyTavern writes after the picture, others before it. A chunk
    that cannot be read is a finding and left out. Raises `CardError` for a bomb.
    """
    for kind, offset, body in chunks:
        if kind not in _TEXTUAL:
            continue
        keyword, _, rest = bytes(body).partition(b"\0")
        if not _WANTED.fullmatch(keyword.strip()):
            continue
        name = keyword.decode("latin-1").strip()
        where = f"{kind.decode()} {name}"
        if name.lower() in ("chara", "ccv3"):
            if name != name.lower():
                findings.add("keyword_case", f"the keyword is written {name!r}", where=where)
            name = name.lower()
        try:
            text = _text(kind, rest, limits, inflater, where)
        except CardError as error:
            if error.code == "inflate_bomb":
                raise
            findings.add(error.code, error.message, where=f"{where} at byte {offset}")
        else:
            if name in ("chara", "ccv3") and kind != b"tEXt":
                findings.add("not_text_chunk", "the card is not in a tEXt chunk", where=where)
            yield Text(name, text, where)


def with_texts(raw: bytes, texts: Iterable[tuple[str, bytes]]) -> bytes:
    """The PNG with these keywords and texts as tEXt chunks before its picture."""
    at = len(SIGNATURE) + 25  # IHDR is first and has 13 bytes
    added = (_chunk(b"tEXt", keyword.encode("latin-1") + b"\0" + text) for keyword, text in texts)
    return raw[:at] + b"".join(added) + raw[at:]


def bare_picture(chunks: Iterable[Chunk]) -> bytes:
    """A PNG of nothing but the picture: no texts, no colour profile, no animation; sums anew.

    Raises `CardError`: `bad_picture` unless a sound IHDR comes first.
    """
    kept = [chunk for chunk in chunks if chunk.type in _PICTURE]
    if not kept or kept[0].type != b"IHDR" or len(kept[0].body) != 13:
        raise CardError("bad_picture", "the PNG has no sound IHDR", where="picture")
    return SIGNATURE + b"".join(_chunk(chunk.type, bytes(chunk.body)) for chunk in kept)


def size(picture: bytes) -> tuple[int, int]:
    """Width and height in pixels, as the IHDR of a bare picture claims them."""
    width, height = struct.unpack_from(">II", picture, len(SIGNATURE) + 8)
    return width, height


def blank(width: int = 256, height: int = 384, grey: int = 0x60) -> bytes:
    """A PNG of one grey, for a card whose character has no picture."""
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = (b"\0" + bytes([grey]) * width) * height
    parts = (b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")
    return SIGNATURE + b"".join(_chunk(kind, body) for kind, body in parts)


def _text(kind: bytes, rest: bytes, limits: ImportLimits, inflater: Inflater, where: str) -> bytes:
    """The text of a chunk, after its keyword."""
    if kind == b"tEXt":
        return rest
    packed = True
    if kind == b"zTXt":
        method, body = rest[:1], rest[1:]
    else:
        packed, method = rest[:1] == b"\1", rest[1:2]
        body = rest[2:].partition(b"\0")[2].partition(b"\0")[2]  # language, translated keyword
    if not packed:
        return body
    if method != b"\0":
        raise CardError("bad_method", f"{where} is compressed in an unknown way", where=where)
    return inflater.inflate(body, where=where, most=limits.chunk_bytes)


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
