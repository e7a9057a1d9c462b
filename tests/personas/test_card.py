"""Reading and writing cards."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from personas.card import CardLimits, read_card, write_card
from personas.persona import CardError

if TYPE_CHECKING:
    from personas.persona import JsonValue, Persona

FULL: dict[str, JsonValue] = {
    "name": "Ada Lang",
    "nickname": "Ada",
    "description": "{{char}} builds clocks.",
    "personality": "patient",
    "scenario": "A workshop.",
    "first_mes": "Tick?",
    "mes_example": "<START>\n{{user}}: Hi\n{{char}}: Tock.",
    "creator_notes": "For testing.\nMore.",
    "system_prompt": "{{original}} Be brief.",
    "post_history_instructions": "Stay in the workshop.",
    "alternate_greetings": ["Tock?"],
    "group_only_greetings": [],
    "tags": ["clocks", "calm"],
    "creator": "us",
    "character_version": "2",
    "extensions": {"someone/else": {"n": 1.5, "deep": [None, True]}},
}


def v3(**data: JsonValue) -> bytes:
    card = {"spec": "chara_card_v3", "spec_version": "3.0", "data": {**FULL, **data}}
    return json.dumps(card).encode()


def read(**data: JsonValue) -> Persona:
    return read_card(v3(**data), id="ada").persona


def test_fields() -> None:
    """Every field of a V3 card arrives in the persona."""
    persona = read_card(v3(), id="ada", avatar="ada.svg").persona
    assert (persona.id, persona.avatar, persona.name) == ("ada", "ada.svg", "Ada Lang")
    assert persona.speaks_as == "Ada"
    assert persona.description == "{{char}} builds clocks."
    assert (persona.personality, persona.scenario) == ("patient", "A workshop.")
    assert (persona.greeting, persona.alternate_greetings) == ("Tick?", ("Tock?",))
    assert persona.examples.startswith("<START>")
    assert persona.system_prompt == "{{original}} Be brief."
    assert persona.post_history_instructions == "Stay in the workshop."
    assert (persona.creator, persona.character_version) == ("us", "2")
    assert persona.creator_notes == "For testing.\nMore."
    assert persona.tags == ("clocks", "calm")


@pytest.mark.parametrize("spec", ["chara_card_v2", "chara_card_v3", "chara_card_v9"])
def test_wrapped(spec: str) -> None:
    """A card of version 2, 3 or later is read from its `data`, not from old copies beside it."""
    card = {"spec": spec, "spec_version": "2.0", "name": "Old", "data": {"name": "New"}}
    assert read_card(json.dumps(card).encode(), id="x").persona.name == "New"


def test_v1() -> None:
    """A V1 card is flat."""
    imported = read_card(b'{"name": "A", "first_mes": "Hi", "odd": 1}', id="x")
    assert (imported.persona.name, imported.persona.greeting) == ("A", "Hi")
    assert imported.report.executed == ("name", "first_mes")
    assert imported.report.preserved == ("odd",)


def test_flat_with_spec() -> None:
    """A card that names V2 but has its fields at the top is read from there."""
    assert read_card(b'{"spec": "chara_card_v2", "name": "A"}', id="x").persona.name == "A"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_encodings(encoding: str) -> None:
    """Unicode with or without a mark is read."""
    assert read_card('{"name": "Zoë 🦊"}'.encode(encoding), id="x").persona.name == "Zoë 🦊"


@pytest.mark.parametrize(
    ("field", "value", "attribute", "found"),
    [
        ("mes_example", None, "examples", ""),
        ("character_version", 1.2, "character_version", "1.2"),
        ("description", ["a", "b"], "description", "a\nb"),
        ("tags", "clocks, calm", "tags", ("clocks", "calm")),
        ("tags", None, "tags", ()),
        ("tags", [1, None, "x"], "tags", ("1", "x")),
        ("name", " A\n B ", "name", "A B"),
        ("name", "", "name", "ada"),
        ("name", None, "name", "ada"),
        ("description", "a\0b\ud800", "description", "ab�"),
    ],
)
def test_repairs(field: str, value: JsonValue, attribute: str, found: object) -> None:
    """What can be understood is repaired and named."""
    imported = read_card(v3(**{field: value}), id="ada")
    assert getattr(imported.persona, attribute) == found
    assert imported.report.repaired == (f"data.{field}",)
    assert f"data.{field}" in imported.report.executed


def test_alternate_greetings_text() -> None:
    """One alternate greeting may be written as a text."""
    imported = read_card(v3(alternate_greetings="Hello, you"), id="ada")
    assert imported.persona.alternate_greetings == ("Hello, you",)
    assert imported.report.repaired == ("data.alternate_greetings",)
    assert "data.alternate_greetings" in imported.report.executed


def test_greeting_from_alternates() -> None:
    """Without a first message the first alternate is the greeting."""
    imported = read_card(v3(first_mes=" ", alternate_greetings=["One", "Two"]), id="ada")
    assert imported.persona.greeting == "One"
    assert imported.persona.alternate_greetings == ("Two",)
    assert imported.report.repaired == ("data.first_mes",)
    data = json.loads(write_card(imported.persona))["data"]
    assert (data["first_mes"], data["alternate_greetings"]) == ("One", ["Two"])


def test_dropped() -> None:
    """A value that makes no sense is dropped, named, and still in the original."""
    imported = read_card(v3(personality={"a": 1}, tags=True, extensions=5), id="ada")
    assert imported.report.dropped == ("data.personality", "data.tags", "data.extensions")
    assert json.loads(write_card(imported.persona))["data"]["extensions"] == {}
    assert imported.persona.personality == ""
    data = imported.persona.card["data"]
    assert isinstance(data, dict)
    assert data["personality"] == {"a": 1}


def test_lorebook() -> None:
    """A lorebook is executed, what of it has no effect is named, and an export keeps it whole."""
    required: dict[str, JsonValue] = {"extensions": {}, "enabled": True, "insertion_order": 1}
    entry: JsonValue = {
        "keys": ["x", "/(?=y)/"],
        "content": "@@depth 3\n@@unheard_of\ny",
        "use_regex": False,
        **required,
    }
    book: JsonValue = {"entries": [entry], "extensions": {}}
    imported = read_card(v3(character_book=book), id="ada")
    assert "data.character_book" in imported.report.executed
    path = "data.character_book.entries.0"
    assert f"{path}.keys.1" in imported.report.preserved
    assert f"{path}.content.@@unheard_of" in imported.report.preserved
    assert [e.content for e in imported.persona.lore[0].entries] == ["y"]
    assert json.loads(write_card(imported.persona))["data"]["character_book"] == book


@pytest.mark.parametrize(
    ("raw", "code", "where"),
    [
        (b"", "bad_json", "1:1"),
        (b'{"name": ', "bad_json", "1:10"),
        (b'{"name": "\xff"}', "bad_encoding", "byte 10"),
        (b"[]", "not_a_card", ""),
        (b"{}", "not_a_card", "data"),
        (b'{"data": {"title": "x"}}', "not_a_card", "data"),
        (b'{"name": ' + b"[" * 300 + b"]" * 300 + b"}", "too_deep", "character 72"),
        (b'{"name": ' + b"[" * 10_000_000, "too_deep", "character 72"),
        (b'{"name": ' + b"9" * 5000 + b"}", "bad_json", ""),
        (b"<html>not found</html>", "bad_json", "1:1"),
    ],
)
def test_refused(raw: bytes, code: str, where: str) -> None:
    """What is no card is refused with a code and a place."""
    with pytest.raises(CardError) as refused:
        read_card(raw, id="x")
    assert (refused.value.code, refused.value.where) == (code, where)


def test_limits() -> None:
    """A card over the size is refused before it is decoded."""
    with pytest.raises(CardError) as refused:
        read_card(b"\xff" * 11, id="x", limits=CardLimits(size=10))
    assert refused.value.code == "too_large"


def test_brackets_in_text() -> None:
    """Brackets inside a text are no nesting, escaped quotes included."""
    text = '\\"' + "[{" * 200
    assert read(description=text).description == text


@pytest.mark.parametrize("literal", ["NaN", "-Infinity", "1e999"])
def test_no_finite_number(literal: str) -> None:
    """A number that JSON does not have becomes null, wherever it is."""
    raw = b'{"name": "A", "extra": [{"n": %s}]}' % literal.encode()
    imported = read_card(raw, id="x")
    assert imported.report.repaired == ("extra.0.n",)
    assert json.loads(write_card(imported.persona))["data"]["extra"] == [{"n": None}]


def test_key_twice() -> None:
    """Of a key written twice the last value counts, and the report says so."""
    imported = read_card(b'{"name": "A", "name": "B"}', id="x")
    assert imported.persona.name == "B"
    assert imported.report.repaired == ("name",)


def test_revision() -> None:
    """The revision names the content: not its spelling, its id or its picture."""
    spaced = json.dumps(json.loads(v3()), indent=4, sort_keys=True).encode()
    other = read_card(spaced, id="other", avatar="x.png").persona
    assert other.revision == read().revision
    assert len(other.revision) == 16
    assert read(description="changed").revision != read().revision
    assert read_card(b'{"name": "A"}', id="a").persona.revision == "b2c9ee672db13673"


def test_write_same() -> None:
    """A sound V3 card is written as it was read, unknown keys included."""
    card = json.loads(v3(odd={"x": [1, "\ud800"]}))
    card["beside"] = "kept"
    written = write_card(read_card(json.dumps(card).encode(), id="x").persona)
    assert json.loads(written) == card


def test_write_v1() -> None:
    """A V1 card becomes a complete V3 card with its own keys in `data`."""
    written = json.loads(write_card(read_card(b'{"name": "A", "odd": 1}', id="x").persona))
    assert (written["spec"], written["spec_version"]) == ("chara_card_v3", "3.0")
    assert written["data"]["odd"] == 1
    assert written["data"]["tags"] == written["data"]["group_only_greetings"] == []
    assert written["data"]["extensions"] == {}
    assert "name" not in written


def test_write_later_version() -> None:
    """A later minor version stays; a V2 card's becomes 3.0."""
    for version, expected in (("3.1", "3.1"), ("2.0", "3.0"), (3, "3.0")):
        card = {"spec": "s", "spec_version": version, "data": {"name": "A"}}
        persona = read_card(json.dumps(card).encode(), id="x").persona
        assert json.loads(write_card(persona))["spec_version"] == expected


def test_write_changed() -> None:
    """A field of the persona that was changed is written over the original's."""
    persona = replace(read(), description="New.", tags=("one",))
    data = json.loads(write_card(persona))["data"]
    assert data == {**FULL, "description": "New.", "tags": ["one"]}


def test_write_long_name() -> None:
    """A name too long to sign replies with is cut for the chat, not in the card."""
    persona = read(name="A" * 300)
    assert len(persona.name) == 80
    assert json.loads(write_card(persona))["data"]["name"] == "A" * 300


def test_write_without_card() -> None:
    """A persona that never was a card can be written as one."""
    bare = replace(read(), card={})
    again = read_card(write_card(bare), id="ada").persona
    assert replace(again, card={}, revision="") == replace(bare, revision="")


def test_tagline() -> None:
    """The tagline is our extension's, else the first line of the creator's notes."""
    assert read().tagline == "For testing."
    assert read(extensions={"greenroom": {"tagline": "Hm."}}).tagline == "Hm."
    assert read(extensions={"greenroom": None}).tagline == "For testing."


def test_hashable() -> None:
    """A persona can be a key."""
    assert len({read(), read(), read(name="Other")}) == 2


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
keys = st.sampled_from([*FULL, "character_book", "assets", "spec", "zz"])


@settings(max_examples=60, deadline=None)
@given(data=st.dictionaries(keys, json_values, max_size=8), wrapped=st.booleans())
def test_any_values(data: dict[str, JsonValue], wrapped: bool) -> None:
    """Whatever the values: every key is reported once, and writing is complete and final."""
    data["name"] = data.get("name")
    card = {"spec": "chara_card_v2", "data": data} if wrapped else data
    imported = read_card(json.dumps(card).encode(), id="x")
    report = imported.report
    prefix = "data." if wrapped else ""
    paths = [*report.executed, *report.preserved, *report.dropped]
    expected = [prefix + key for key in data] + (["spec", "data"] if wrapped else [])
    assert sorted(paths) == sorted(expected)
    written = write_card(imported.persona)
    again = read_card(written, id="x")
    without = {"spec"}
    if data.get("character_book") is None:
        without.add("character_book")  # no book is no key: readers take null for a broken one
    assert set(data) - without <= set(json.loads(written)["data"])
    assert not again.report.dropped
    assert write_card(again.persona) == written
    assert replace(again.persona, card={}, revision="") == replace(
        imported.persona, card={}, revision=""
    )


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode()))
def test_any_bytes(raw: bytes) -> None:
    """Bytes that are no card end in a CardError and nothing else."""
    with pytest.raises(CardError):
        read_card(raw, id="x")
