"""Avatars from strangers: decoded once within limits and written anew."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, NamedTuple

from personas import exif, png
from personas.limits import Findings, ImportLimits
from personas.persona import CardError

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["Picture", "for_page", "reencode"]

# Pixels from which a picture without transparency goes to a page as JPEG: a tenth of a PNG's bytes,
# and a twentieth of its time. Small ones are drawings, with edges that stay sharp.
_PHOTO = 1 << 16
_QUALITY = 90


class Picture(NamedTuple):
    """A picture that was made anew."""

    data: bytes
    media_type: str


def reencode(picture: bytes, limits: ImportLimits | None = None) -> bytes:
    """The picture as a new PNG in RGB or RGBA, its longer side at most `avatar_side` pixels.

    Nothing of the file but its pixels is left: no texts, profiles, animation, trailing bytes.
    PNG, JPEG and WEBP are read. Raises `CardError`: `too_many_pixels` before anything is decoded,
    `bad_picture`.
    """
    return _made(picture, limits or ImportLimits(), photo=None).data


def for_page(picture: bytes, limits: ImportLimits | None = None) -> Picture:
    """As `reencode`, but a large picture without transparency becomes a JPEG."""
    return _made(picture, limits or ImportLimits(), photo=_PHOTO)


def _made(picture: bytes, limits: ImportLimits, *, photo: int | None) -> Picture:
    """`photo`: from so many pixels on JPEG may be written."""
    # Here, so that importing the room stays light.
    import PIL.Image

    format = _format(picture)
    if format == "PNG":
        picture = _bare(picture, limits)
    elif format == "JPEG":
        picture = exif.bare_jpeg(picture)
    try:
        with PIL.Image.open(io.BytesIO(picture), formats=(format,)) as image:
            _check_pixels(*image.size, limits)
            return _encode(image, limits, photo)
    except CardError:
        raise
    except (PIL.Image.DecompressionBombError, PIL.Image.DecompressionBombWarning) as error:
        raise CardError("too_many_pixels", str(error), where="picture") from None
    except Exception as error:  # Pillow's decoders raise what they like on broken files
        raise CardError("bad_picture", f"the picture cannot be read: {error}") from None


def _format(picture: bytes) -> str:
    if picture.startswith(png.SIGNATURE):
        return "PNG"
    if exif.is_jpeg(picture):
        return "JPEG"
    if exif.is_webp(picture):
        return "WEBP"
    raise CardError("bad_picture", "the picture is no PNG, JPEG or WEBP", where="picture")


def _bare(picture: bytes, limits: ImportLimits) -> bytes:
    """Only the chunks a picture needs: Pillow never sees a text or a profile that inflates."""
    bare = png.bare_picture(png.read_chunks(picture, limits, Findings()))
    _check_pixels(*png.size(bare), limits)
    return bare


def _check_pixels(width: int, height: int, limits: ImportLimits) -> None:
    if width * height > limits.pixels:
        message = f"the picture has {width} × {height} pixels, more than {limits.pixels} in all"
        raise CardError("too_many_pixels", message, where="picture")


def _encode(image: Image, limits: ImportLimits, photo: int | None) -> Picture:
    side = limits.avatar_side
    image.draft("RGB", (side, side))  # lets JPEG decode at a fraction of its size
    transparent = image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info
    plain = image.convert("RGBA" if transparent else "RGB")
    if max(plain.size) > side:
        plain.thumbnail((side, side))
    plain.info.clear()
    out = io.BytesIO()
    if photo is not None and not transparent and plain.width * plain.height >= photo:
        plain.save(out, "JPEG", quality=_QUALITY)
        return Picture(out.getvalue(), "image/jpeg")
    plain.save(out, "PNG", compress_level=1)
    return Picture(out.getvalue(), "image/png")
