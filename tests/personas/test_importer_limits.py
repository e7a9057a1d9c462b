"""What an import refuses, and that nothing but a `CardError` ever comes out of it."""

from __future__ import annotations

import json
import re
import time
import tracemalloc
import zlib
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from personas.importer import ImportedCard, read_any
from personas.limits import ImportLimits
from personas.persona import CardError
from tests.personas import makers

if TYPE_CHECKING:
    from personas.persona import JsonValue


def refused(raw: bytes, limits: ImportLimits | None = None) -> CardError:
    with pytest.raises(CardError) as caught:
        read_any(raw, limits=limits)
    return caught.value


SMALL = ImportLimits(
    file_bytes=1 << 20,
    json_bytes=20_000,
    json_values=500,
    lore_entries=10,
    png_chunks=20,
    chunk_bytes=100_000,
    inflated_bytes=200_000,
    ratio_floor=50_000,
    zip_entries=5,
    zip_entry_bytes=50_000,
    pixels=10_000,
)


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (bytes(2 << 20), "too_large"),
        (makers.card(description="x" * 30_000), "too_large"),
        (b'{"data":' + b"[" * 300 + b"]" * 300 + b"}", "too_deep"),
        (b'{"name":"a","x":[' + b"0," * 600 + b"0]}", "too_many_values"),
        (makers.card(character_book={"entries": [{} for _ in range(11)]}), "too_many_entries"),
        (json.dumps({"entries": {str(n): {} for n in range(11)}}).encode(), "too_many_entries"),
        (makers.png(*[makers.chunk(b"teSt", b"")] * 30), "too_many_chunks"),
        (makers.png(makers.chunk(b"tEXt", b"x\0" + bytes(200_000))), "chunk_too_large"),
        (makers.png(makers.ztext(bytes(90_000))), "inflate_bomb"),
        (makers.png(makers.text(makers.card()), width=200, height=200), "too_many_pixels"),
        (makers.archive({f"{n}": b"" for n in range(6)}), "zip_too_many"),
        (makers.archive({"card.json": bytes(60_000)}), "inflate_bomb"),
        (makers.archive({"../card.json": makers.card()}), "zip_slip"),
        (b"a: " + b"[" * 300, "too_deep"),
    ],
)
def test_limits(raw: bytes, code: str) -> None:
    """Each limit is its own error."""
    assert refused(raw, SMALL).code == code


def test_row_14_default_limits() -> None:
    """A book of 4,000 entries is read, a nesting of 300 is refused."""
    entries: list[JsonValue] = [{"keys": [f"k{n}"], "content": "x" * 40} for n in range(4000)]
    assert isinstance(read_any(makers.card(character_book={"entries": entries})), ImportedCard)
    nested = b'{"name": "Ada", "x": ' + b"[" * 300 + b"]" * 300 + b"}"
    assert refused(nested).code == "too_deep"


def bombs() -> dict[str, bytes]:
    zeros = zlib.compress(bytes(300 << 20), 9)
    packed = makers.chunk(b"zTXt", b"chara\0\0" + zeros)
    return {
        "zTXt": makers.png(packed),
        "many zTXt": makers.png(
            *[makers.chunk(b"zTXt", b"chara-ext-asset_:0\0\0" + zlib.compress(bytes(900_000)))]
            * 400
        ),
        "zip": makers.archive({"card.json": bytes(300 << 20)}),
        "pixels": makers.png(makers.text(makers.card()), width=60_000, height=60_000),
        "values": b'{"name":"a","x":[' + b"{}," * 4_000_000 + b"{}]}",
        "depth": b'{"x":' * 200_000,
        "quotes": b'{"x":"' + b'\\"' * 2_000_000,
        "commas": b'{"x":[' + b", " * 400_000 + b"}",
        "yaml": b"a: &a [x]\nb: [*a, *a]\n",
        "line ends": b"\n" * 200_000 + b"x",
        "ends of dialog": b"{{char}}: a\n" + b"\n" * 200_000 + b"END_OF_DIALO" * 4000,
        "speakers": b"{{char}}:" + b"{{random_user_1}} a\n:" * 10_000,
        "pictures": makers.card(first_mes="![" * 2_000_000, x=[[]] * 1_000_000),
        "keyword": makers.png(makers.chunk(b"tEXt", b"chara-ext-asset_" * 200_000)),
    }


NAMES = (
    "zTXt",
    "many zTXt",
    "zip",
    "pixels",
    "values",
    "depth",
    "quotes",
    "commas",
    "yaml",
    "line ends",
    "pictures",
    "keyword",
)


@pytest.fixture(scope="module")
def made_bombs() -> dict[str, bytes]:
    return bombs()


@pytest.mark.parametrize("name", NAMES)
def test_bombs(made_bombs: dict[str, bytes], name: str) -> None:
    """A bomb ends in a typed error in seconds, and with the default limits in 200 MB."""
    raw = made_bombs[name]
    tracemalloc.start()
    began = time.process_time()
    try:
        refused(raw)
        assert time.process_time() - began < 10
        assert tracemalloc.get_traced_memory()[1] < 200 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", ["ends of dialog", "speakers"])
def test_long_texts(made_bombs: dict[str, bytes], name: str) -> None:
    """Texts made to keep a search busy are read in seconds."""
    began = time.process_time()
    assert isinstance(read_any(made_bombs[name]), ImportedCard)
    assert time.process_time() - began < 10


# --- noise

PARTS = st.sampled_from(
    [
        makers.png(makers.text(makers.card())),
        makers.png(makers.ztext(makers.card()), after=[makers.itext(makers.card(), b"chara")]),
        makers.archive({"card.json": makers.card(), "a.png": b"a" * 100}),
        makers.jpeg(makers.tiff(makers.card())),
        makers.webp(makers.tiff(makers.card(), order=">")),
        makers.card(),
        b"name: Ada\ncontext: x\n",
    ]
)
EDITS = st.lists(
    st.tuples(st.floats(0, 1), st.integers(0, 12), st.binary(max_size=12)), min_size=1, max_size=6
)


@settings(max_examples=300)
@given(raw=PARTS, edits=EDITS)
def test_noise(raw: bytes, edits: list[tuple[float, int, bytes]]) -> None:
    """A card with any bytes replaced is read or refused by name, never anything else."""
    for place, gone, put in edits:
        at = int(place * len(raw))
        raw = raw[:at] + put + raw[at + gone :]
    with suppress(CardError):
        read_any(raw, limits=SMALL)


@settings(max_examples=150)
@given(
    st.binary(max_size=200), st.sampled_from([b"", makers.SIGNATURE, b"PK\3\4", b"\xff\xd8\xff"])
)
def test_bytes(raw: bytes, start: bytes) -> None:
    """Any bytes at all are read or refused by name."""
    with suppress(CardError):
        read_any(start + raw)


KEYS = st.sampled_from(
    re.findall(
        r"\w+",
        "name data spec spec_version first_mes description tags character_book entries assets uri "
        "extensions definition character greeting char_name context key keys alternate_greetings",
    )
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=300)
@given(st.dictionaries(KEYS, JSON, max_size=6))
def test_any_object(value: dict[str, JsonValue]) -> None:
    """Any JSON object is a card, a lorebook, or refused by name."""
    with suppress(CardError):
        read_any(json.dumps(value).encode())
