"""Avatars from strangers."""

from __future__ import annotations

import io

import PIL.Image
import pytest

from personas.limits import ImportLimits
from personas.persona import CardError
from personas.pictures import for_page, reencode
from tests.personas import makers


def picture(format: str, mode: str = "RGB", size: tuple[int, int] = (20, 10)) -> bytes:
    out = io.BytesIO()
    PIL.Image.new(mode, size, 80).save(out, format)
    return out.getvalue()


def opened(raw: bytes) -> PIL.Image.Image:
    return PIL.Image.open(io.BytesIO(raw), formats=("PNG",))


@pytest.mark.parametrize(
    ("format", "mode", "left"),
    [
        ("PNG", "RGB", "RGB"),
        ("PNG", "RGBA", "RGBA"),
        ("PNG", "P", "RGB"),
        ("PNG", "1", "RGB"),
        ("PNG", "LA", "RGBA"),
        ("PNG", "I;16", "RGB"),
        ("JPEG", "L", "RGB"),
        ("JPEG", "CMYK", "RGB"),
        ("WEBP", "RGBA", "RGBA"),
    ],
)
def test_formats(format: str, mode: str, left: str) -> None:
    """Every kind of PNG, JPEG and WEBP becomes a PNG in RGB or RGBA of the same size."""
    made = opened(reencode(picture(format, mode)))
    assert (made.mode, made.size) == (left, (20, 10))


def test_size() -> None:
    """A picture larger than the limit's side is made smaller, in proportion."""
    made = opened(reencode(picture("JPEG", size=(300, 100)), ImportLimits(avatar_side=60)))
    assert made.size == (60, 20)


def test_nothing_but_pixels() -> None:
    """Texts, EXIF and what follows the picture are gone."""
    raw = reencode(makers.png(makers.text(b"secret", b"Comment"), end=b"tail"))
    assert b"Comment" not in raw
    assert raw.endswith(b"IEND\xaeB`\x82")


def test_pixels() -> None:
    """Too many pixels are refused from the header alone."""
    for raw in (makers.png(width=9000, height=9000), picture("JPEG"), picture("WEBP")):
        with pytest.raises(CardError) as caught:
            reencode(raw, ImportLimits(pixels=100))
        assert caught.value.code == "too_many_pixels"


def test_broken_exif_does_not_matter() -> None:
    """A JPEG whose metadata is broken is decoded without a warning."""
    raw = picture("JPEG")
    body = b"Exif\0\0MM\0*\0\0\0\x08\0\x09"
    raw = raw[:2] + b"\xff\xe1" + (len(body) + 2).to_bytes(2, "big") + body + raw[2:]
    assert opened(reencode(raw)).size == (20, 10)


@pytest.mark.parametrize(
    "raw", [b"", b"<svg/>", b"GIF89a", makers.webp(b"x"), makers.jpeg(b"x"), makers.SIGNATURE]
)
def test_broken(raw: bytes) -> None:
    """What cannot be decoded is refused by name."""
    with pytest.raises(CardError) as caught:
        reencode(raw)
    assert caught.value.code == "bad_picture"


@pytest.mark.parametrize(
    ("mode", "size", "kind"),
    [
        ("RGB", (400, 300), "image/jpeg"),
        ("RGBA", (400, 300), "image/png"),
        ("RGB", (20, 10), "image/png"),
    ],
)
def test_for_page(mode: str, size: tuple[int, int], kind: str) -> None:
    """A page gets a large picture as JPEG, unless it is transparent; a small one as PNG."""
    made = for_page(picture("PNG", mode, size))
    assert made.media_type == kind
    found = PIL.Image.open(io.BytesIO(made.data))
    assert (f"image/{(found.format or '').lower()}", found.size) == (kind, size)
