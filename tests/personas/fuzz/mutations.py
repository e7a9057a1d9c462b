"""Ways to break a file: what a bad disk, a bad writer and a bad person do to it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterator, Sequence

    from personas.persona import JsonValue

__all__ = ["mutated"]

MOST = 1 << 16
"""Bytes that a mutated file may have."""
LENGTHS = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
WORDS = (
    *(b"IHDR", b"IDAT", b"IEND", b"tEXt", b"zTXt", b"iTXt", b"acTL", b"chara\0", b"ccv3\0"),
    *(b"PK\1\2", b"PK\3\4", b"PK\5\6", b"../", b"card.json", b"Exif\0\0", b"RIFF", b"\xff\xd8\xff"),
    *(b"{", b"}", b"[", b"]", b'"', b"\\", b"\\u0000", b"\\ud800", b"null", b"true", b"NaN"),
    *(b"-Infinity", b"1e999", b"1" * 400, b'"data":', b'"entries":', b'"keys":', b'"name":'),
    *(
        b"{{",
        b"}}",
        b"::",
        b"{{if ",
        b"{{/if}}",
        b"{{else}}",
        b"{{trim}}",
        b"{{roll:99d999999999}}",
    ),
    *(
        b"{{getvar::a}}",
        b"{{setvar::a::",
        b"{{addvar::a::",
        b"{{reverse:",
        b"{{space::999}}",
        b"<START>",
    ),
    *(
        b"\n",
        b"\r\n",
        b"\0",
        b"\t",
        b": ",
        b"- ",
        b"|\n",
        b"&a ",
        b"*a",
        b"!!python/none",
        b"---\n",
        b"? ",
    ),
    *(
        b"@@depth -1\n",
        b"@@@role user\n",
        b"@@activate\n",
        b"(a*)*b",
        b"\\b",
        b"(?i)",
        b"x{1,1000}",
    ),
    *(
        "\u0130".encode(),
        "\ufb01".encode(),
        "\U0001f642".encode(),
        b"\xed\xa0\x80",
        b"\xef\xbb\xbf",
    ),
)


PLAIN: tuple[JsonValue, ...] = (
    *(None, True, False, 0, -1, 1, 7, 10**9, 10**400, -(10**400), 0.5, -1e308),
    *(float("nan"), float("inf")),
    *("", "0", "-1", "true", "1e999", "nan", " ", "\0", "\ud800", "\u2028", "\r", "x" * 5_000),
    *("{{char}}", "{{if 1}}", "{{random:}}", "{{", "/(/", "/a/zz", "//i", "/", ",", "@@", "@@@"),
    *("@@depth", "@@depth 99999999999", "@@position scenario\n@@role", "chara_card_v2"),
    *("embeded://", "data:,x", "characters/c/c.json", "<START>", "{{char}}:"),
)
VALUES: tuple[JsonValue, ...] = (
    *PLAIN,
    [],
    {},
    [None],
    [1, "x", {}, []],
    [{}, {}, {}],
    {"": ""},
    {"0": {}},
    {"entries": []},
)


def mutated(seeds: Sequence[bytes], draw: random.Random) -> bytes:
    """One of the seeds with one to six mutations; the same for a `draw` in the same state."""
    raw = draw.choice(seeds)
    for _ in range(draw.choice((1, 1, 2, 3, 6))):
        raw = draw.choice(WAYS)(raw, seeds, draw)[:MOST]
    return raw


def _flip(raw: bytes, seeds: Sequence[bytes], draw: random.Random) -> bytes:
    """Some bits."""
    made = bytearray(raw or b"\0")
    for _ in range(draw.randint(1, 8)):
        made[draw.randrange(len(made))] ^= 1 << draw.randrange(8)
    return bytes(made)


def _cut(raw: bytes, seeds: Sequence[bytes], draw: random.Random) -> bytes:
    """Without a part, or with nothing but it."""
    start, end = _part(raw, draw)
    return draw.choice((raw[:start], raw[start:], raw[:start] + raw[end:]))


def _repeat(raw: bytes, seeds: Sequence[bytes], draw: random.Random) -> bytes:
    """A part again and again."""
    start, end = _part(raw, draw)
    return raw[:start] + raw[start:end] * draw.choice((2, 2, 3, 10, 1000)) + raw[end:]


def _splice(raw: bytes, seeds: Sequence[bytes], draw: random.Random) -> bytes:
    """The beginning of one file and the end of another."""
    other = draw.choice(seeds)
    return raw[: draw.randint(0, len(raw))] + other[draw.randint(0, len(other)) :]


def _length(raw: bytes, seeds: Sequence[bytes], draw: random.Random) -> bytes:
    """A number in the file is another one."""
    width, order = draw.choice((1, 2, 4)), draw.choice(("big", "little"))
    at = draw.randint(0, max(0, len(raw) - width))
    number = draw.choice((draw.choice(LENGTHS), len(raw), draw.getrandbits(12)))
    value = (number % (1 << 8 * width)).to_bytes(width, "big" if order == "big" else "little")
    return raw[:at] + value + raw[at + width :]


def _word(raw: bytes, seeds: Sequence[bytes], draw: random.Random) -> bytes:
    """A word of one of the formats, where it may mean something."""
    start, end = _part(raw, draw)
    return (
        raw[:start]
        + draw.choice(WORDS) * draw.choice((1, 1, 1, 2, 50))
        + raw[draw.choice((start, end)) :]
    )


def _random(raw: bytes, seeds: Sequence[bytes], draw: random.Random) -> bytes:
    """Bytes that mean nothing."""
    start, end = _part(raw, draw)
    return raw[:start] + draw.randbytes(draw.randint(1, 40)) + raw[end:]


def _value(raw: bytes, seeds: Sequence[bytes], draw: random.Random) -> bytes:
    """JSON with another value somewhere, another key, or a part that is there twice."""
    try:
        whole: JsonValue = json.loads(raw)
    except (ValueError, RecursionError):
        return _word(raw, seeds, draw)
    for _ in range(draw.randint(1, 3)):
        nodes = [*_nodes(whole)] or [whole]
        node, other = draw.choice(nodes), draw.choice(nodes)
        value = json.dumps(draw.choice((draw.choice(VALUES), other)))  # a copy: no cycles
        if isinstance(node, dict):
            node[draw.choice([*node, "name", "entries"])] = json.loads(value)
        elif isinstance(node, list) and node:
            node[draw.randrange(len(node))] = json.loads(value)
    return json.dumps(whole, ensure_ascii=draw.random() < 0.5).encode(errors="surrogatepass")


def _nodes(value: JsonValue) -> Iterator[JsonValue]:
    """Every object and list."""
    if isinstance(value, (dict, list)):
        yield value
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _nodes(inner)


def _part(raw: bytes, draw: random.Random) -> tuple[int, int]:
    start = draw.randint(0, len(raw))
    return start, min(len(raw), start + draw.choice((1, 4, 16, 64, len(raw))))


WAYS: tuple[Callable[[bytes, Sequence[bytes], random.Random], bytes], ...] = (
    _flip,
    _cut,
    _repeat,
    _splice,
    _length,
    _word,
    _random,
    _value,
    _value,
)
