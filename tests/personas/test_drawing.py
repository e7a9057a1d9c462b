"""personas.drawing: what a drawing says is where it says it; what is not known is refused."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from personas.drawing import rasterize
from personas.persona import CardError

SHIPPED = sorted((Path(__file__).parents[2] / "personas" / "cards").glob("*.svg"))
RED, WHITE, BLACK = (255, 0, 0), (255, 255, 255), (0, 0, 0)


def drawn(body: str, side: int = 100) -> PIL.Image.Image:
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 100 100">{body}</svg>'
    return PIL.Image.open(io.BytesIO(rasterize(svg.encode(), side)))


@pytest.mark.parametrize(
    ("body", "inside", "outside"),
    [
        (
            '<rect x="20" y="20" width="60" height="60" fill="#f00"/>',
            [(22, 22), (78, 78)],
            [(18, 50)],
        ),
        (
            '<rect x="20" y="20" width="60" height="60" rx="20" fill="#f00"/>',
            [(50, 22)],
            [(22, 22)],
        ),
        ('<circle cx="50" cy="50" r="30" fill="#f00"/>', [(50, 22), (69, 69)], [(75, 75)]),
        ('<ellipse cx="50" cy="50" rx="40" ry="10" fill="#f00"/>', [(14, 50)], [(50, 64)]),
        ('<path d="M10 10 H90 V90 h-80 Z" fill="#f00"/>', [(50, 50), (88, 88)], [(5, 5)]),
        ('<path d="M10,10 l80,0 0,80z" fill="#f00"/>', [(80, 20)], [(20, 80)]),
        ('<path d="M0 50 Q50 -50 100 50 Z" fill="#f00"/>', [(50, 10)], [(5, 10), (50, 60)]),
        (
            '<path d="M0 50 q25 -50 50 0 t50 0 V100 H0 Z" fill="#f00"/>',
            [(25, 40), (75, 80)],
            [(75, 60)],
        ),
        ('<path d="M20 50 C20 0 80 0 80 50 Z" fill="#f00"/>', [(50, 20)], [(50, 5)]),
        ('<path d="M20 50 A30 30 0 0 1 80 50 Z" fill="#f00"/>', [(50, 25)], [(50, 60)]),
        ('<path d="M20 50 a30 30 0 0 0 60 0 Z" fill="#f00"/>', [(50, 75)], [(50, 40)]),
        ('<path d="M50 20 A30 30 0 1 1 20 50" fill="#f00"/>', [(70, 70)], [(25, 25)]),
        (
            '<path d="M10 50 H90" stroke="#f00" stroke-width="10"/>',
            [(50, 47), (12, 50)],
            [(50, 40)],
        ),
        (
            '<path d="M30 50 H70" stroke="#f00" stroke-width="20" stroke-linecap="round"/>',
            [(23, 50)],
            [(15, 50)],
        ),
        (
            '<g fill="#f00" transform="rotate(90 50 50)"><rect x="40" width="20" height="30"/></g>',
            [(90, 50)],
            [(50, 10)],
        ),
        (
            '<g fill="#ff0000"><circle cx="20" cy="20" r="9"/></g><circle cx="80" cy="80" r="9"/>',
            [(20, 20)],
            [(80, 80)],
        ),
    ],
)
def test_shapes(body: str, inside: list[tuple[int, int]], outside: list[tuple[int, int]]) -> None:
    """Each kind of shape covers what it should, and no more."""
    image = drawn(body)
    assert [image.getpixel(point) for point in inside] == [RED] * len(inside)
    assert RED not in [image.getpixel(point) for point in outside]


def test_order_and_opacity() -> None:
    """Later shapes cover earlier ones; half of red on white is pink; black is the default."""
    image = drawn(
        '<rect width="100" height="100"/><rect width="50" height="100" fill="#fff"/>'
        '<rect y="50" width="50" height="50" fill="#f00" opacity=".5"/>'
    )
    assert image.getpixel((75, 50)) == BLACK
    assert image.getpixel((25, 25)) == WHITE
    pink = image.getpixel((25, 75))
    assert isinstance(pink, tuple)
    assert pink[0] == 255
    assert abs(pink[1] - 128) <= 1


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped(path: Path) -> None:
    """Every shipped portrait can be drawn, in several colours, to its corners."""
    image = PIL.Image.open(io.BytesIO(rasterize(path.read_bytes(), 128)))
    assert image.size == (128, 128)
    assert image.getpixel((2, 2)) != WHITE
    colours = image.getcolors(1 << 20)
    assert colours is not None
    assert len(colours) > 20


@pytest.mark.parametrize(
    "svg",
    [
        b"",
        b"<html/>",
        b"<svg/>",
        b'<svg viewBox="0 0 9"/>',
        b'<svg viewBox="0 0 9 8"/>',
        b'<svg viewBox="1 0 9 9"/>',
        b'<svg viewBox="0 0 9 9"><script/></svg>',
        b'<svg viewBox="0 0 9 9"><image href="http://x"/></svg>',
        b'<svg viewBox="0 0 9 9"><rect width="9" height="9" fill="url(#a)"/></svg>',
        b'<svg viewBox="0 0 9 9"><g transform="scale(2)"/></svg>',
        b'<svg viewBox="0 0 9 9"><path d="M0 0 S1 1 2 2"/></svg>',
        b'<svg viewBox="0 0 9 9"><path d="M0 0 L1"/></svg>',
        b'<svg viewBox="0 0 9 9"><path/></svg>',
        b'<!DOCTYPE s [<!ENTITY a "b">]><svg viewBox="0 0 9 9"/>',
        b'<svg viewBox="0 0 9 9">' + b"<g/>" * 3000 + b"</svg>",
        b" " * (65 << 10),
    ],
)
def test_refused(svg: bytes) -> None:
    """What is not known is refused, by name, and never drawn wrong."""
    with pytest.raises(CardError) as refused:
        rasterize(svg, 8)
    assert refused.value.code == "bad_drawing"


@settings(max_examples=60, deadline=None)
@given(st.text(alphabet="MLHVCQTAZmlhvcqtaz0123456789 -.,e", max_size=60))
def test_any_path(d: str) -> None:
    """Whatever a path says, it is drawn or refused."""
    with contextlib.suppress(CardError):
        assert drawn(f'<path d="{d}" stroke="#000" fill="none"/>', 8).size == (8, 8)
