"""Every container by one entry: the rows of the field survey, limits, noise."""

from __future__ import annotations

import base64
import json
import re
from typing import TYPE_CHECKING

import pytest

from personas.importer import ImportedBook, ImportedCard, read_any
from personas.persona import CardError
from tests.personas import makers

if TYPE_CHECKING:
    from personas.persona import JsonValue


def read(raw: bytes, *, filename: str = "") -> ImportedCard:
    found = read_any(raw, filename=filename)
    assert isinstance(found, ImportedCard)
    return found


def codes(found: ImportedCard | ImportedBook) -> set[str]:
    return {finding.code for finding in found.findings}


def refused(raw: bytes) -> CardError:
    with pytest.raises(CardError) as caught:
        read_any(raw)
    return caught.value


def test_json_generations() -> None:
    """V1, V2 and V3 JSON give the same persona."""
    v1 = json.dumps({"name": "Ada", "first_mes": "Tick?", "description": "Clocks."}).encode()
    for raw in (v1, makers.card("chara_card_v2", "2.0"), makers.card()):
        found = read(raw)
        assert found.container == "json"
        assert (found.persona.id, found.persona.name) == ("ada", "Ada")
        assert found.persona.greeting == "Tick?"
        assert found.findings == ()


def test_row_1_nulls() -> None:
    """Null for a text, a list or the lorebook is an empty one."""
    found = read(makers.card(character_book=None, mes_example=None, personality=None, tags=None))
    assert found.persona.examples == ""
    assert "data.mes_example" in found.report.repaired


def test_row_2_and_8_odd_lorebook() -> None:
    """Odd entries of a lorebook are kept as they were written."""
    entries: list[JsonValue] = [
        {"key": "a, b", "position": "", "id": "x"},
        {"keys": "a", "position": 4, "role": 2, "id": "x"},
        {"keys": ["b"], "position": "in_chat", "id": -1},
    ]
    found = read(makers.card(character_book={"entries": entries, "token_budget": "12"}))
    data = found.persona.card["data"]
    assert isinstance(data, dict)
    assert data["character_book"] == {"entries": entries, "token_budget": "12"}


def test_row_3_numbers() -> None:
    """A number for a text is read as one, and named."""
    found = read(makers.card(character_version=2))
    assert found.persona.character_version == "2"
    assert "data.character_version" in found.report.repaired


def test_row_4_no_name() -> None:
    """A card without a name is called by its file."""
    found = read(makers.card(name=""), filename="some/Old Tom.json")
    assert (found.persona.id, found.persona.name) == ("old-tom", "old-tom")


def test_row_5_greetings() -> None:
    """One alternate greeting as text, comma tags, and no first message are understood."""
    found = read(makers.card(first_mes="", alternate_greetings="Tock?", tags="a, b"))
    assert found.persona.greeting == "Tock?"
    assert found.persona.tags == ("a", "b")


def test_row_6_wrappers() -> None:
    """What lies in `data` counts before copies at the top; a spec without data is V1."""
    both = {"spec": "chara_card_v2", "name": "Old", "data": {"name": "New", "first_mes": "x"}}
    found = read(json.dumps(both).encode())
    assert found.persona.name == "New"
    assert "name" in found.report.preserved
    flat = {"spec": "chara_card_v3", "spec_version": "3.0", "name": "Ada", "first_mes": "x"}
    assert read(json.dumps(flat).encode()).persona.name == "Ada"


def test_row_7_missing_lists() -> None:
    """The lists that V3 requires and nobody writes are not missed."""
    assert read(makers.card()).report.dropped == ()


@pytest.mark.parametrize("version", ["2", "3", 3, "3.1", "4.0", "x", None])
def test_row_12_versions(version: JsonValue) -> None:
    """Any version is read; one that is not the spec's own is a finding."""
    assert "spec_version" in codes(read(makers.card("chara_card_v3", version)))


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b"\xef\xbb\xbf" + makers.card(), "byte_order_mark"),
        (makers.card().decode().encode("utf-16"), "byte_order_mark"),
        (makers.card()[:-2] + b",}}", "trailing_comma"),
        (makers.card().replace(b"Clocks.", b"a\nb"), "control_characters"),
        (makers.card() + b"\0\0", "trailing_nul"),
        (base64.b64encode(makers.card()), "base64_file"),
    ],
)
def test_row_10_mended_json(raw: bytes, code: str) -> None:
    """Each repair of a JSON text is a finding of its name."""
    found = read(raw)
    assert found.persona.name == "Ada"
    assert code in codes(found)


def test_row_10_nan() -> None:
    """NaN becomes null, and the report names the field."""
    found = read(makers.card().replace(b'"Clocks."', b'"Clocks.", "extensions": {"n": NaN}'))
    assert "data.extensions.n" in found.report.repaired


def test_row_11_texts() -> None:
    """Surrogates, emoji, right-to-left, CRLF and NUL are read; escaped line breaks are named."""
    raw = makers.card(description="\ud83d 🕰 ساعة\r\n\0", first_mes="Hi\\nthere")
    found = read(raw)
    assert "🕰 ساعة" in found.persona.description
    assert "escaped_newlines" in codes(found)
    assert found.persona.greeting == "Hi\\nthere"


@pytest.mark.parametrize("name", ["a:b", "a\nb", "../../a", "CON", "x" * 300])
def test_row_18_names(name: str) -> None:
    """No name makes an id that is no file name."""
    found = read(makers.card(name=name))
    assert re.fullmatch(r"[\w-]{1,70}", found.persona.id)
    assert found.persona.id != "con"


def test_row_19_remote() -> None:
    """Remote pictures are findings; nothing is fetched (the test's sockets would refuse)."""
    assets: list[JsonValue] = [{"type": "icon", "uri": "https://x.test/a.png", "name": "main"}]
    found = read(makers.card(assets=assets, first_mes="![](http://x.test/b.png)"))
    assert [f.code for f in found.findings] == ["not_fetched", "not_fetched"]


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b"", "empty"),
        (b" \n\0", "empty"),
        (b"GIF89a" + bytes(20), "unsupported"),
        (b"\0\0\0\x20ftypavif" + bytes(20), "unsupported"),
        (b"\n<!DOCTYPE html><html>", "html_page"),
        (b"<svg xmlns=''/>", "html_page"),
        (makers.webp(b"")[:30], "no_card"),
        (makers.jpeg(b""), "bad_exif"),
        (makers.png(), "no_card"),
        (makers.png(makers.chunk(b"tEXt", b"chara\0rcc||rccv1||abc")), "encrypted"),
        (b"rcc||rccv1||abc", "encrypted"),
        (b"[1, 2]", "not_a_card"),
        (b'{"a": 1}', "not_a_card"),
        (b'{"name": "Ada"', "bad_json"),
        (b"hello", "not_a_card"),
        (b"\xff\xfe\x00\xd8\x00", "bad_encoding"),
        (b"PK\3\4 and no more", "bad_zip"),
    ],
)
def test_row_20_no_card(raw: bytes, code: str) -> None:
    """What is no card is refused by name, whatever its file is called."""
    assert refused(raw).code == code


def test_foreign_json() -> None:
    """Pygmalion's, text-generation-webui's and Character.AI's JSON are told apart."""
    for raw, container in (
        ({"char_name": "Ada", "char_greeting": "Tick?"}, "pygmalion json"),
        ({"name": "Ada", "context": "c", "greeting": "Tick?"}, "text-generation-webui json"),
        ({"name": "Ada", "greeting": "Tick?", "definition": ""}, "character_ai json"),
        ({"character": {"name": "Ada", "greeting": "Tick?"}}, "character_ai json"),
    ):
        found = read(json.dumps(raw).encode())
        assert found.container == container
        assert (found.persona.name, found.persona.greeting) == ("Ada", "Tick?")


def test_yaml_with_braces() -> None:
    """YAML may begin as JSON does; under another name it is taken for broken JSON."""
    raw = b"{name: Ada, greeting: 'Hi', context: A clockmaker.}"
    found = read_any(raw, filename="ada.yaml")
    assert isinstance(found, ImportedCard)
    assert (found.persona.name, found.persona.greeting) == ("Ada", "Hi")
    with pytest.raises(CardError, match="1:2"):
        read_any(raw, filename="ada.json")


def test_yaml() -> None:
    """text-generation-webui's YAML is read by its content."""
    raw = b"name: Ada\ngreeting: |-\n  Tick?\n  Tock.\ncontext: 'Clocks: many.'\nyour_name: null\n"
    found = read(raw, filename="ada.txt")
    assert found.container == "text-generation-webui yaml"
    assert found.persona.greeting == "Tick?\nTock."
    assert found.persona.description == "Clocks: many."


def test_definition() -> None:
    """A Character.AI definition is example dialogue, named by its file."""
    raw = b"Ada makes clocks.\n{{char}}: Tick\n{{random_user_1}}: Tock\nEND_OF_DIALOG\n{{user}}: Hi"
    found = read(raw, filename="Ada.txt")
    assert found.persona.name == "Ada"
    assert found.persona.description == "Ada makes clocks."
    assert found.persona.examples == (
        "<START>\n{{char}}: Tick\n{{user}}: Tock\n<START>\n{{user}}: Hi"
    )


def test_world_info() -> None:
    """World info alone is a lorebook, no card."""
    raw = json.dumps({"name": "Town", "entries": {"0": {"uid": 0, "key": ["a"]}}}).encode()
    found = read_any(raw)
    assert isinstance(found, ImportedBook)
    assert found.name == "Town"
