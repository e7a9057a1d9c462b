"""Drawings (SVG) as PNG, for files that can only hold pixels.

As much of SVG as our portraits use: rectangles, circles, ellipses and paths with fill, stroke and
opacity, groups, rotation. Anything else is refused rather than drawn wrong. Source: SVG 1.1, 8 and
9; arcs by its appendix F.6.
"""

from __future__ import annotations

import io
import math
import re
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING
from xml.parsers import expat

from personas.persona import CardError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from PIL.Image import Image

__all__ = ["rasterize"]

Point = tuple[float, float]

_BYTES = 64 << 10
_NODES = 2000
_FINER = 4  # drawn larger and scaled down, which smooths the edges
_STEPS = 24  # of one curve
_TOKEN = re.compile(r"[MLHVCQTAZmlhvcqtaz]|[-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?")
_TAKES = {"M": 2, "L": 2, "H": 1, "V": 1, "C": 6, "Q": 4, "T": 2, "A": 7}
_COLOUR = re.compile(r"#(?:[0-9a-fA-F]{3}|[0-9a-fA-F]{6})")
_ROTATE = re.compile(r"rotate\(\s*([-\d.]+)[\s,]+([-\d.]+)[\s,]+([-\d.]+)\s*\)")
_INHERITED = ("fill", "stroke", "stroke-width", "stroke-linecap")


@dataclass(frozen=True, slots=True)
class _Line:
    """One run of a path, flattened."""

    points: list[Point]
    closed: bool


@dataclass(frozen=True, slots=True)
class _Style:
    """What a shape inherits; `turn` is a rotation in degrees about a point."""

    values: Mapping[str, str]
    opacity: float = 1.0
    turn: tuple[float, float, float] = (0.0, 0.0, 0.0)


def rasterize(svg: bytes, side: int = 512) -> bytes:
    """The drawing as an RGB PNG of `side` × `side` pixels.

    Raises `CardError` (`bad_drawing`) for what is no drawing of this kind.
    """
    import PIL.Image

    if len(svg) > _BYTES:
        raise CardError("bad_drawing", f"the drawing has more than {_BYTES} bytes")
    image = PIL.Image.new("RGB", (side * _FINER, side * _FINER), "#ffffff")
    try:
        _Drawing(image).run(svg)
    except (expat.ExpatError, ValueError, KeyError, IndexError, OverflowError) as error:
        raise CardError("bad_drawing", f"the drawing cannot be drawn: {error}") from error
    out = io.BytesIO()
    image.resize((side, side), PIL.Image.Resampling.BOX).save(out, "PNG")
    return out.getvalue()


class _Drawing:
    """Draws the shapes as the parser meets them."""

    def __init__(self, image: Image) -> None:
        self._image = image
        self._scale = 1.0
        self._styles = [_Style({"fill": "#000000"})]
        self._nodes = 0

    def run(self, svg: bytes) -> None:
        parser = expat.ParserCreate()
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end

        def refuse(*_: object) -> None:
            raise ValueError("a document type")

        parser.StartDoctypeDeclHandler = refuse  # no entities, so none that grow
        parser.Parse(svg, True)

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        self._nodes += 1
        if self._nodes > _NODES:
            raise ValueError(f"more than {_NODES} shapes")
        style = self._style(attributes)
        self._styles.append(style)
        if name == "svg":
            left, top, width, height = (float(n) for n in attributes["viewBox"].split())
            if left or top or width != height or width <= 0:
                raise ValueError("its viewBox is no square at 0 0")
            self._scale = self._image.width / width
        elif name == "path":
            self._draw([*_path(attributes["d"])], style)
        elif name in ("circle", "ellipse"):
            x, y = float(attributes["cx"]), float(attributes["cy"])
            rx = float(attributes.get("rx", attributes.get("r", "0")))
            ry = float(attributes.get("ry", attributes.get("r", "0")))
            self._draw([_Line([*_arc(x, y, rx, ry, 0.0, 360.0)], True)], style)
        elif name == "rect":
            self._draw([_rectangle(attributes)], style)
        elif name != "g":
            raise ValueError(f"<{name}> is not known here")

    def _end(self, name: str) -> None:
        self._styles.pop()

    def _style(self, attributes: Mapping[str, str]) -> _Style:
        above = self._styles[-1]
        own = {key: attributes[key] for key in _INHERITED if key in attributes}
        style = replace(above, values={**above.values, **own})
        if "opacity" in attributes:
            style = replace(style, opacity=above.opacity * float(attributes["opacity"]))
        if "transform" in attributes:
            found = _ROTATE.fullmatch(attributes["transform"].strip())
            if found is None or above.turn[0]:
                raise ValueError(f"transform {attributes['transform'][:40]!r} is not known here")
            style = replace(style, turn=(float(found[1]), float(found[2]), float(found[3])))
        return style

    def _draw(self, lines: list[_Line], style: _Style) -> None:
        import PIL.ImageDraw

        placed = [
            replace(line, points=[self._place(p, style) for p in line.points]) for line in lines
        ]
        target = self._image.copy() if style.opacity < 1 else self._image
        draw = PIL.ImageDraw.Draw(target)
        fill, stroke = style.values["fill"], style.values.get("stroke", "none")
        for line in placed:
            if fill != "none" and len(line.points) > 2:
                draw.polygon(line.points, fill=_colour(fill))
        width = float(style.values.get("stroke-width", "1")) * self._scale
        for line in placed if stroke != "none" else ():
            points = [*line.points, line.points[0]] if line.closed else line.points
            draw.line(points, fill=_colour(stroke), width=round(width), joint="curve")
            if style.values.get("stroke-linecap") == "round" and not line.closed:
                for x, y in (points[0], points[-1]):
                    r = width / 2
                    draw.ellipse((x - r, y - r, x + r, y + r), fill=_colour(stroke))
        if target is not self._image:
            import PIL.Image

            self._image.paste(PIL.Image.blend(self._image, target, style.opacity))

    def _place(self, point: Point, style: _Style) -> Point:
        (x, y), (degrees, cx, cy) = point, style.turn
        if degrees:
            angle = math.radians(degrees)
            dx, dy = x - cx, y - cy
            x = cx + dx * math.cos(angle) - dy * math.sin(angle)
            y = cy + dx * math.sin(angle) + dy * math.cos(angle)
        return x * self._scale, y * self._scale


def _colour(value: str) -> str:
    if not _COLOUR.fullmatch(value):
        raise ValueError(f"colour {value[:40]!r} is not known here")
    return value


def _rectangle(attributes: Mapping[str, str]) -> _Line:
    x, y = float(attributes.get("x", "0")), float(attributes.get("y", "0"))
    w, h = float(attributes["width"]), float(attributes["height"])
    r = min(float(attributes.get("rx", "0")), w / 2, h / 2)
    corners = (
        (x + w - r, y + r, -90.0),
        (x + w - r, y + h - r, 0.0),
        (x + r, y + h - r, 90.0),
        (x + r, y + r, 180.0),
    )
    return _Line([p for cx, cy, at in corners for p in _arc(cx, cy, r, r, at, at + 90)], True)


def _arc(x: float, y: float, rx: float, ry: float, begin: float, end: float) -> Iterator[Point]:
    """Points of an ellipse from one angle to another, in degrees."""
    steps = max(2, round(abs(end - begin) / 360 * _STEPS * 3))
    for step in range(steps + 1):
        angle = math.radians(begin + (end - begin) * step / steps)
        yield x + rx * math.cos(angle), y + ry * math.sin(angle)


def _path(d: str) -> Iterator[_Line]:
    tokens = _TOKEN.findall(d)
    if re.sub(r"[\s,]", "", _TOKEN.sub("", d)):
        raise ValueError(f"path {d[:40]!r} has what is not known here")
    points: list[Point] = []
    x = y = 0.0
    control: Point | None = None  # of the last quadratic curve
    command = ""
    at = 0
    while at < len(tokens):
        if tokens[at].isalpha():
            command = tokens[at]
            at += 1
            if command in "Zz":
                if points:
                    yield _Line(points, True)
                    x, y = points[0]
                    points = []
                continue
        count = _TAKES[command.upper()]
        n = [float(token) for token in tokens[at : at + count]]
        if len(n) < count:
            raise ValueError(f"path {d[:40]!r} ends in the middle")
        at += count
        kind, from_x, from_y = command.upper(), *((x, y) if command.islower() else (0.0, 0.0))
        if kind == "M":
            if points:
                yield _Line(points, False)
            x, y = from_x + n[0], from_y + n[1]
            points = [(x, y)]
            command = "l" if command == "m" else "L"  # further pairs are lines
            continue
        points = points or [(x, y)]
        before = control
        control = None
        if kind in ("L", "H", "V"):
            to = {
                "L": (from_x + n[0], from_y + n[-1]),
                "H": (from_x + n[0], y),
                "V": (x, from_y + n[0]),
            }[kind]
            points.append(to)
        elif kind == "A":
            to = (from_x + n[5], from_y + n[6])
            points += _elliptic((x, y), to, n[0], n[1], n[2], bool(n[3]), bool(n[4]))
        else:
            pairs = [(from_x + a, from_y + b) for a, b in zip(n[::2], n[1::2], strict=True)]
            if kind == "T":
                mirrored = (2 * x - before[0], 2 * y - before[1]) if before else (x, y)
                pairs = [mirrored, *pairs]
            if kind in "QT":
                control = pairs[0]
            to = pairs[-1]
            points += _curve([(x, y), *pairs])
        x, y = to
    if points:
        yield _Line(points, False)


def _curve(points: list[Point]) -> Iterator[Point]:
    """A Bézier curve of any degree, without its first point (de Casteljau)."""
    for step in range(1, _STEPS + 1):
        t, left = step / _STEPS, points
        while len(left) > 1:
            left = [(a[0] + (b[0] - a[0]) * t, a[1] + (b[1] - a[1]) * t) for a, b in pairwise(left)]
        yield left[0]


def _elliptic(
    start: Point, end: Point, rx: float, ry: float, tilt: float, large: bool, sweep: bool
) -> Iterator[Point]:
    """An arc from its ends to its centre, as appendix F.6.5 has it; without the first point."""
    rx, ry = abs(rx), abs(ry)
    if start == end or not rx or not ry or tilt:
        if tilt:
            raise ValueError("a tilted arc is not known here")
        yield end
        return
    hx, hy = (start[0] - end[0]) / 2, (start[1] - end[1]) / 2
    grow = math.sqrt(max(1.0, (hx / rx) ** 2 + (hy / ry) ** 2))
    rx, ry = rx * grow, ry * grow
    spare = (rx * ry) ** 2 - (rx * hy) ** 2 - (ry * hx) ** 2
    root = math.sqrt(max(0.0, spare) / ((rx * hy) ** 2 + (ry * hx) ** 2))
    root = -root if large == sweep else root
    cx, cy = root * rx * hy / ry, -root * ry * hx / rx
    begin = math.degrees(math.atan2((hy - cy) / ry, (hx - cx) / rx))
    finish = math.degrees(math.atan2((-hy - cy) / ry, (-hx - cx) / rx))
    if sweep and finish < begin:
        finish += 360
    elif not sweep and finish > begin:
        finish -= 360
    cx, cy = cx + (start[0] + end[0]) / 2, cy + (start[1] + end[1]) / 2
    yield from [*_arc(cx, cy, rx, ry, begin, finish)][1:]
