"""Cards in the EXIF of pictures."""

from __future__ import annotations

import io
import struct
from contextlib import suppress

import PIL.Image
import pytest
from hypothesis import given
from hypothesis import strategies as st

from personas import exif
from personas.limits import Findings, ImportLimits
from personas.persona import CardError
from tests.personas import makers


def read(raw: bytes, limits: ImportLimits | None = None) -> bytes:
    return exif.read_comment(raw, limits or ImportLimits(), Findings())


@pytest.mark.parametrize("order", ["<", ">"])
def test_character_sets(order: str) -> None:
    """ASCII, undefined, Unicode and no character set at all are understood."""
    wide = '{"ü": 1}'.encode("utf-16-le" if order == "<" else "utf-16-be")
    for charset, comment, found in (
        (b"ASCII\0\0\0", b'{"a": 1}', b'{"a": 1}'),
        (bytes(8), '{"ü": 1}'.encode(), '{"ü": 1}'.encode()),
        (b"UNICODE\0", wide, '{"ü": 1}'.encode()),
        (b"", b'{"abcdefghi": 1}', b'{"abcdefghi": 1}'),
    ):
        assert read(makers.jpeg(makers.tiff(comment, order=order, charset=charset))) == found


def test_byte_list() -> None:
    """A list of byte values is those bytes; a list of anything else stays as it is."""
    assert read(makers.webp(makers.tiff(b"123, 125"))) == b"{}"
    assert read(makers.webp(makers.tiff(b"1,256"))) == b"1,256"


@pytest.mark.parametrize("format", ["JPEG", "WEBP"])
def test_written_by_pillow(format: str) -> None:
    """The comment is found in whole pictures that another writer made."""
    tags = PIL.Image.Exif()
    tags.get_ifd(0x8769)[0x9286] = b"ASCII\0\0\0{}"
    out = io.BytesIO()
    PIL.Image.new("RGB", (4, 4)).save(out, format, exif=tags)
    assert read(out.getvalue()) == b"{}"


@pytest.mark.parametrize(
    ("tiff", "code"),
    [
        (b"", "bad_exif"),
        (b"XX*\0\x08\0\0\0", "bad_exif"),
        (b"II*\0\xff\xff\0\0", "bad_exif"),
        (b"II*\0\x08\0\0\0\xff\xff", "bad_exif"),
        (b"II*\0\x08\0\0\0\0\0\0\0\0\0", "no_card"),
        (makers.tiff(b" "), "no_card"),
        (makers.tiff(b"{}")[:-9], "no_card"),
        (makers.tiff(b"{}" + bytes(3000)), "chunk_too_large"),
    ],
)
def test_refused(tiff: bytes, code: str) -> None:
    """EXIF that is broken, empty or too large is refused by name."""
    with pytest.raises(CardError) as caught:
        read(makers.jpeg(tiff), ImportLimits(chunk_bytes=2000))
    assert caught.value.code == code


def test_loop() -> None:
    """A directory that points at itself is read once."""
    loop = b"II*\0" + struct.pack("<LHHHLL", 8, 1, 0x8769, 4, 1, 8)
    with pytest.raises(CardError) as caught:
        read(makers.jpeg(loop))
    assert caught.value.code == "no_card"


@given(st.binary(max_size=60), st.integers(0, 80), st.booleans())
def test_noise(put: bytes, at: int, in_webp: bool) -> None:
    """Any bytes in any place are read or refused by name."""
    raw = (makers.webp if in_webp else makers.jpeg)(makers.tiff(b'{"a": 1}'))
    with suppress(CardError):
        read(raw[:at] + put + raw[at + len(put) :])
