"""Characters out and in again, and read by readers we did not write."""

from __future__ import annotations

import json

import aichar
import pytest
import tavern_card
from hypothesis import given
from hypothesis import strategies as st

from personas import exporter
from personas.card import read_card
from personas.charx import Asset
from personas.importer import ImportedCard, read_any
from personas.lorebook_reading import sound_book
from personas.persona import CardError, JsonValue, Persona
from tests.personas import makers

BOOK: dict[str, JsonValue] = {
    "name": "Town",
    "extensions": {"a": [1, None]},
    "unknown": 1.5,
    "entries": [
        {"keys": ["a"], "content": "@@depth 3\n@@@role user\nHello\n@@not at the top", "x": 1},
        {"keys": ["b"], "content": "Plain", "use_regex": True},
    ],
}


def persona(**data: JsonValue) -> Persona:
    raw = makers.card(
        character_book=BOOK,
        nickname="A",
        extensions={"some/one": {"deep": [None, 1.5, "ü\ud83d"]}},
        unknown={"kept": True},
        **data,
    )
    return read_card(raw, id="ada").persona


def again(raw: bytes) -> ImportedCard:
    found = read_any(raw)
    assert isinstance(found, ImportedCard)
    return found


def fields(card: bytes) -> dict[str, JsonValue]:
    data = json.loads(card)["data"]
    assert isinstance(data, dict)
    return data


def test_json_round_trip() -> None:
    """V3 out and in again is the same card, value for value."""
    first = exporter.to_json(persona())
    assert exporter.to_json(again(first).persona) == first
    kept = fields(first)
    assert kept["character_book"] == sound_book(BOOK)
    assert kept["extensions"] == {"some/one": {"deep": [None, 1.5, "ü\ud83d"]}}
    assert kept["unknown"] == {"kept": True}


def test_v2() -> None:
    """V2 keeps every key; only decorators at the top of lore go, and that is said."""
    whole = json.loads(exporter.to_json(persona(), version=2))
    assert (whole["spec"], whole["spec_version"]) == ("chara_card_v2", "2.0")
    entries = whole["data"]["character_book"]["entries"]
    added = {"extensions": {}, "enabled": True, "insertion_order": 100, "use_regex": False}
    assert entries[0] == {"keys": ["a"], "content": "Hello\n@@not at the top", "x": 1, **added}
    assert whole["data"]["unknown"] == {"kept": True}
    said = {(f.code, f.where) for f in exporter.losses(persona())}
    assert said == {
        ("decorators_dropped", "data.character_book.entries.0.content"),
        ("only_v3", "data.character_book.entries.1.use_regex"),
        ("only_v3", "data.nickname"),
    }
    assert exporter.losses(persona(), version=3) == ()


def test_png_round_trip() -> None:
    """A PNG holds V2 in `chara` and V3 in `ccv3`, and its picture."""
    raw = exporter.to_png(persona(), makers.png())
    found = again(raw)
    assert found.findings == ()
    assert exporter.to_json(found.persona) == exporter.to_json(persona())
    assert raw.index(b"chara\0") < raw.index(b"ccv3\0") < raw.index(b"IDAT")
    assert exporter.to_png(found.persona, found.avatar) != b""


def test_png_replaces_cards() -> None:
    """Texts of the picture that is given, an older card among them, do not get out."""
    old = makers.png(makers.text(makers.card(name="Old")), end=b"tail")
    raw = exporter.to_png(persona(), old)
    assert raw.count(b"ccv3\0") == 1
    assert b"tail" not in raw


def test_png_without_picture() -> None:
    """Without a picture there is a grey one; what is no picture is refused."""
    assert again(exporter.to_png(persona())).avatar is not None
    with pytest.raises(CardError):
        exporter.to_png(persona(), b"<svg/>")


def test_png_assets() -> None:
    """Assets go out as RisuAI's chunks and come back."""
    raw = exporter.to_png(persona(), assets=[Asset("0", b"joy")])
    assert again(raw).assets == (Asset("0", b"joy"),)


def test_charx_round_trip() -> None:
    """A CHARX holds the V3 card and every file; the same input gives the same bytes."""
    assets = [Asset("assets/a.png", b"a"), Asset("module.risum", b"b")]
    raw = exporter.to_charx(persona(), assets)
    found = again(raw)
    assert {(a.path, a.data) for a in found.assets} == {(a.path, a.data) for a in assets}
    assert exporter.to_json(found.persona) == exporter.to_json(persona())
    assert exporter.to_charx(persona(), assets) == raw
    with pytest.raises(CardError):
        exporter.to_charx(persona(), [Asset("../a", b"")])


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


@given(JSON, st.dictionaries(st.text(max_size=5), JSON, max_size=3))
def test_unknown_keys(value: JsonValue, extensions: dict[str, JsonValue]) -> None:
    """Any value under an unknown key or in `extensions` survives PNG, V2 and V3."""
    raw = makers.card(**{"x-ours": value, "extensions": extensions})
    kept = read_card(raw, id="ada").persona
    for out in (
        exporter.to_png(kept),
        exporter.to_json(kept, version=2),
        exporter.to_json(kept),
        exporter.to_charx(kept),
    ):
        found = fields(exporter.to_json(again(out).persona))
        assert found["x-ours"] == value
        assert found["extensions"] == extensions


def test_tavern_card_reads_ours() -> None:
    """`tavern-card` reads our PNG and our JSON as we do."""
    mine = persona(tags=["a"], alternate_greetings=["Tock?"])
    for theirs in (
        tavern_card.parse_png_card(exporter.to_png(mine)),
        tavern_card.parse_card(exporter.to_json(mine, version=2)),
    ):
        data = theirs["data"]
        assert (data["name"], data["first_mes"]) == (mine.name, mine.greeting)
        assert data["description"] == mine.description
        assert tuple(data["alternate_greetings"]) == mine.alternate_greetings
        assert data["character_book"]["entries"][1]["content"] == "Plain"


def test_we_read_tavern_card() -> None:
    """We read what `tavern-card` writes (it writes no card with a lone surrogate)."""
    card = json.loads(makers.card("chara_card_v2", "2.0"))
    assert again(tavern_card.write_png_card(card)).persona.greeting == "Tick?"


def test_aichar() -> None:
    """`aichar` reads our PNG by its V1 fields (it knows no V2); we read all that it writes."""
    mine = persona(personality="patient", scenario="A shop.", mes_example="<START>\nx")
    theirs = aichar.load_character_card(exporter.to_png(mine))
    assert (theirs.name, theirs.greeting_message) == ("Ada", "Tick?")
    assert (theirs.scenario, theirs.example_messages) == ("A shop.", "<START>\nx")
    made = aichar.create_character("Ada", "sum", "pers", "A shop.", "Tick?", "<START>\nx", "")
    for kind in ("tavernai", "pygmalion", "textgenerationwebui"):
        for text in (made.export_json(kind), made.export_yaml(kind)):
            found = again(text.encode()).persona
            assert (found.name, found.greeting) == ("Ada", "Tick?"), text


def test_v2_has_numbers_as_ids() -> None:
    """An entry's id that is a text stays in V3; V2 leaves it out and says so."""
    book: JsonValue = {"entries": [{"keys": ["a"], "content": "A", "id": "x"}]}
    found = read_card(makers.card(character_book=book), id="ada").persona
    for version, id in ((3, "x"), (2, None)):
        whole = json.loads(exporter.to_json(found, version=3 if version == 3 else 2))
        assert whole["data"]["character_book"]["entries"][0].get("id") == id
    assert [each.where for each in exporter.losses(found)] == ["data.character_book.entries.0.id"]
