"""The EXIF user comment of a JPEG or WEBP, where old TavernAI kept its cards.

Sources: Exif 2.32 section 4.6 (IFD structure, UserComment 0x9286), TIFF 6.0 section 2, the RIFF
container of WebP. Pictures are not decoded here.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from personas.persona import CardError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from personas.limits import Findings, ImportLimits

__all__ = ["bare_jpeg", "is_jpeg", "is_webp", "read_comment"]

_EXIF_POINTER, _USER_COMMENT, _DESCRIPTION = 0x8769, 0x9286, 0x010E
_BYTES_PER_VALUE = {1: 1, 2: 1, 3: 2, 4: 4, 7: 1}
_TEXT_IS_8 = (b"ASCII\0\0\0", b"\0\0\0\0\0\0\0\0", b"JIS\0\0\0\0\0")


def is_jpeg(raw: bytes) -> bool:
    """Whether the file begins as a JPEG does."""
    return raw.startswith(b"\xff\xd8\xff")


def is_webp(raw: bytes) -> bool:
    """Whether the file begins as a WEBP does."""
    return raw.startswith(b"RIFF") and raw[8:12] == b"WEBP"


def read_comment(raw: bytes, limits: ImportLimits, findings: Findings) -> bytes:
    """The card's JSON out of a picture's EXIF.

    The comment is JSON, base64 of it (returned as it is), or a list of byte values with commas.
    Raises `CardError`: `no_card` when there is no comment, `chunk_too_large`, `bad_exif`.
    """
    for tiff in _webp(raw) if is_webp(raw) else _jpeg(raw):
        if len(tiff) > limits.chunk_bytes:
            message = f"the EXIF has {len(tiff)} bytes, more than {limits.chunk_bytes}"
            raise CardError("chunk_too_large", message, where="EXIF")
        comment = _comment(tiff, limits)
        if comment.strip(b" \0"):
            return _bytes_listed(comment.strip(b" \0\r\n\t"), findings)
    raise CardError("no_card", "the picture has no card in its EXIF")


def _webp(raw: bytes) -> Iterator[bytes]:
    at = 12
    while at + 8 <= len(raw):
        kind, size = raw[at : at + 4], int.from_bytes(raw[at + 4 : at + 8], "little")
        if kind == b"EXIF":
            yield raw[at + 8 : at + 8 + size].removeprefix(b"Exif\0\0")
        at += 8 + size + size % 2


def bare_jpeg(raw: bytes) -> bytes:
    """The JPEG without comments and metadata, which decoders would read and warn of."""
    kept, at = [raw[:2]], 2
    for marker, start, end in _segments(raw):
        if not (0xE1 <= marker <= 0xEF and marker != 0xEE) and marker != 0xFE:  # Adobe's colours
            kept.append(raw[start:end])
        at = end
    return b"".join([*kept, raw[at:]])


def _jpeg(raw: bytes) -> Iterator[bytes]:
    for marker, start, end in _segments(raw):
        body = raw[start + 4 : end]
        if marker == 0xE1 and body.startswith(b"Exif\0\0"):
            yield body[6:]


def _segments(raw: bytes) -> Iterator[tuple[int, int, int]]:
    """Marker, start and end of each segment before the picture itself."""
    at = 2
    while at + 4 <= len(raw) and raw[at] == 0xFF and raw[at + 1] != 0xDA:
        end = at + 2 + max(int.from_bytes(raw[at + 2 : at + 4], "big"), 2)
        yield raw[at + 1], at, end
        at = end


def _comment(tiff: bytes, limits: ImportLimits) -> bytes:
    """The user comment of a TIFF structure as UTF-8, else its description, else nothing."""
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None or len(tiff) < 8:
        raise CardError("bad_exif", "the EXIF does not begin as TIFF does", where="EXIF")
    (first,) = struct.unpack_from(order + "L", tiff, 4)
    tags = _tags(tiff, order, first, limits)
    pointer = tags.get(_EXIF_POINTER)
    inner: dict[int, bytes] = {}
    if pointer is not None and len(pointer) == 4:
        inner = _tags(tiff, order, struct.unpack(order + "L", pointer)[0], limits)
    comment = inner.get(_USER_COMMENT, tags.get(_USER_COMMENT))
    if comment is None:
        return tags.get(_DESCRIPTION, b"")
    charset, text = comment[:8], comment[8:]
    if charset == b"UNICODE\0":
        encoding = "utf-16-le" if order == "<" else "utf-16-be"
        if text[:2] in (b"\xff\xfe", b"\xfe\xff"):
            encoding = "utf-16"
        return text.decode(encoding, errors="replace").encode()
    return text if charset in _TEXT_IS_8 else comment  # some writers leave the charset out


def _tags(tiff: bytes, order: str, at: int, limits: ImportLimits) -> dict[int, bytes]:
    """The values of one directory; those that lie outside of the data are left out."""
    if at + 2 > len(tiff):
        raise CardError("bad_exif", "an EXIF directory is outside of the EXIF", where="EXIF")
    (count,) = struct.unpack_from(order + "H", tiff, at)
    if count > limits.exif_entries:
        message = f"an EXIF directory has {count} entries, more than {limits.exif_entries}"
        raise CardError("bad_exif", message, where="EXIF")
    tags: dict[int, bytes] = {}
    for number in range(count):
        entry = at + 2 + 12 * number
        if entry + 12 > len(tiff):
            break
        tag, kind, values = struct.unpack_from(order + "HHL", tiff, entry)
        size = _BYTES_PER_VALUE.get(kind, 0) * values
        start = entry + 8
        if size > 4:
            (start,) = struct.unpack_from(order + "L", tiff, start)
        if 0 < size <= len(tiff) - start:
            tags.setdefault(tag, tiff[start : start + size])
    return tags


def _bytes_listed(comment: bytes, findings: Findings) -> bytes:
    """`123,34,…` as the bytes it lists; anything else as it is."""
    if not comment[:1].isdigit():
        return comment
    try:
        listed = bytes(int(value) for value in comment.split(b","))
    except ValueError:  # no number, or none of a byte
        return comment
    findings.add("byte_list", "the EXIF comment lists the card's bytes as numbers", where="EXIF")
    return listed
