"""Cards inside pictures and archives."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING

import pytest

from personas.importer import ImportedBook, ImportedCard, read_any
from personas.persona import CardError
from tests.personas import makers

if TYPE_CHECKING:
    from collections.abc import Callable

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


# --- PNG


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (makers.png(makers.text(makers.card(), b"CCV3")), "keyword_case"),
        (makers.png(makers.ztext(makers.card())), "not_text_chunk"),
        (makers.png(makers.itext(makers.card())), "not_text_chunk"),
        (makers.png(makers.itext(makers.card(), packed=True)), "not_text_chunk"),
        (makers.png(makers.text(makers.card()), end=b"more"), "bytes_after_end"),
        (makers.png(makers.text(makers.card()))[:-6], "truncated_png"),
        (makers.png(makers.text(makers.card()))[:-12], "no_end"),
        (
            makers.png(makers.chunk(b"tEXt", b"ccv3\0" + base64.b64encode(makers.card()), crc=7)),
            "bad_crc",
        ),
        (makers.png(makers.chunk(b"tEXt", b"chara\0" + makers.card())), "raw_json"),
        (
            makers.png(makers.chunk(b"tEXt", b"chara\0" + base64.encodebytes(makers.card()))),
            "base64_spaces",
        ),
    ],
)
def test_row_9_and_10_png(raw: bytes, code: str) -> None:
    """A card in a PNG is found wherever writers put it; what is odd is a finding."""
    found = read(raw)
    assert (found.container, found.persona.name) == ("png", "Ada")
    assert codes(found) == {code}


def test_row_9_after_the_picture() -> None:
    """A card after the picture is read; that is where SillyTavern writes it."""
    found = read(makers.png(after=[makers.text(makers.card())]))
    assert (found.persona.name, found.findings) == ("Ada", ())


def test_row_10_base64_alphabets() -> None:
    """The alphabet for URLs and missing padding are read and named."""
    payload = makers.card(description="??>>~~ÿÿ" * 3 + "x")
    packed = base64.urlsafe_b64encode(payload).rstrip(b"=")
    found = read(makers.png(makers.chunk(b"tEXt", b"chara\0" + packed)))
    assert found.persona.description.startswith("??>>")
    assert codes(found) <= {"base64_urlsafe", "base64_padding"}
    assert codes(found)


def test_ccv3_wins() -> None:
    """`ccv3` counts before `chara`, wherever they stand."""
    old, new = makers.card("chara_card_v2", "2.0", name="Old"), makers.card(name="New")
    for parts in (
        (makers.text(old, b"chara"), makers.text(new)),
        (makers.text(new), makers.text(old, b"chara")),
    ):
        found = read(makers.png(*parts))
        assert found.persona.name == "New"
        assert found.findings == ()


def test_row_9_duplicates() -> None:
    """Of two chunks with one keyword the first counts, and that is said."""
    found = read(
        makers.png(
            makers.text(makers.card(name="One"), b"chara"),
            makers.text(makers.card(name="Two"), b"chara"),
        )
    )
    assert found.persona.name == "One"
    assert codes(found) == {"duplicate_card"}


def test_broken_ccv3() -> None:
    """A `ccv3` that cannot be read leaves `chara`, and its error is a finding."""
    found = read(makers.png(makers.text(b"{broken"), makers.text(makers.card(), b"chara")))
    assert found.persona.name == "Ada"
    assert "bad_json" in codes(found)


def test_asset_chunks() -> None:
    """RisuAI's asset chunks come by the card's names, with and without the colon."""
    assets: list[JsonValue] = [
        {"type": "icon", "uri": "ccdefault:", "name": "main", "ext": "png"},
        {"type": "emotion", "uri": "__asset:0", "name": "joy", "ext": "png"},
        {"type": "emotion", "uri": "__asset_1", "name": "woe", "ext": "png"},
        {"type": "emotion", "uri": "__asset:9", "name": "gone", "ext": "png"},
    ]
    raw = makers.png(
        makers.text(makers.card(assets=assets)),
        makers.text(b"zero", b"chara-ext-asset_:0"),
        makers.text(b"one", b"chara-ext-asset_1"),
    )
    found = read(raw)
    assert [(a.path, a.data, a.type, a.name) for a in found.assets] == [
        ("0", b"zero", "emotion", "joy"),
        ("1", b"one", "emotion", "woe"),
    ]
    assert codes(found) == {"asset_missing"}


def test_apng() -> None:
    """An animated PNG is read as its first picture."""
    found = read(makers.png(makers.chunk(b"acTL", bytes(8)), makers.text(makers.card())))
    assert found.container == "apng"
    assert found.avatar is not None
    assert b"acTL" not in found.avatar


def test_avatar() -> None:
    """The avatar is made anew: no text of the file is in it; without one the card is read too."""
    found = read(makers.png(makers.text(makers.card()), end=b"secret"))
    assert found.avatar is not None
    assert found.persona.avatar == "ada.png"
    assert b"ccv3" not in found.avatar
    assert b"secret" not in found.avatar
    broken = makers.png(makers.text(makers.card())).replace(b"IDAT", b"IDAU")
    found = read(broken)
    assert (found.avatar, found.persona.avatar) == (None, None)
    assert "bad_picture" in codes(found)


def test_no_avatar_wanted() -> None:
    """Without a wish for the avatar the picture is not decoded, and is there for later."""
    raw = makers.png(makers.text(makers.card()))
    found = read_any(raw, with_avatar=False)
    assert isinstance(found, ImportedCard)
    assert (found.avatar, found.picture) == (None, raw)


# --- archives


def test_charx() -> None:
    """A CHARX gives its card and its files; files that the card does not name are kept."""
    assets: list[JsonValue] = [
        {"type": "icon", "uri": "embeded://assets/icon/a.png", "name": "main", "ext": "png"},
        {"type": "emotion", "uri": "embedded://assets/joy.png", "name": "joy", "ext": "png"},
    ]
    raw = makers.archive(
        {
            "card.json": makers.card(assets=assets),
            "assets/icon/a.png": makers.png(),
            "assets/joy.png": b"joy",
            "module.risum": b"risu",
        }
    )
    found = read(raw)
    assert found.container == "charx"
    assert found.avatar is not None
    assert {a.path: a.type for a in found.assets} == {
        "assets/icon/a.png": "icon",
        "assets/joy.png": "emotion",
        "module.risum": "",
    }
    assert codes(found) == {"unnamed_file"}


@pytest.mark.parametrize("prefix", [makers.jpeg(b""), b"MZ program\0", makers.png()])
def test_row_13_prefix(prefix: bytes) -> None:
    """An archive behind a picture or a program is found."""
    found = read(makers.archive({"card.json": makers.card()}, prefix=prefix))
    assert (found.container, found.persona.name) == ("charx", "Ada")
    assert "prefix" in codes(found)


def test_row_13_subfolder() -> None:
    """A card.json in a folder is read, and its files are named from there."""
    found = read(makers.archive({"x/card.json": makers.card(), "x/a.png": b"a"}))
    assert found.assets[0].path == "a.png"
    assert "card_in_subfolder" in codes(found)


def test_byaf() -> None:
    """A Backyard archive: persona, scenario, greetings of all scenarios, lore, picture."""
    manifest = {
        "schemaVersion": 1,
        "characters": ["characters/7/character.json"],
        "scenarios": ["scenarios/1.json", "scenarios/2.json"],
        "author": {"name": "us"},
    }
    character = {
        "name": "Ada",
        "displayName": "Ada the Clockmaker",
        "persona": "{character} knows {user} and {{char}}.",
        "loreItems": [{"key": "clock, watch", "value": "{character} made it."}],
        "images": [{"path": "images/a.png", "label": ""}],
    }
    first = {
        "narrative": "A workshop.",
        "firstMessages": [{"characterID": "7", "text": "Hello {user}"}],
        "exampleMessages": [{"characterID": "7", "text": "#{user}: Hi\n#{character}: Ho"}],
    }
    second = {"firstMessages": [{"characterID": "7", "text": "Again?"}]}
    raw = makers.archive(
        {
            "manifest.json": json.dumps(manifest).encode(),
            "characters/7/character.json": json.dumps(character).encode(),
            "characters/7/images/a.png": makers.png(),
            "scenarios/1.json": json.dumps(first).encode(),
            "scenarios/2.json": json.dumps(second).encode(),
        }
    )
    found = read(raw)
    persona = found.persona
    assert found.container == "byaf"
    assert (persona.name, persona.speaks_as) == ("Ada the Clockmaker", "Ada")
    assert persona.description == "{{char}} knows {{user}} and {{char}}."
    assert (persona.greeting, persona.alternate_greetings) == ("Hello {{user}}", ("Again?",))
    assert persona.examples == "<START>\n{{user}}: Hi\n{{char}}: Ho"
    assert persona.creator == "us"
    assert found.avatar is not None
    data = persona.card["data"]
    assert isinstance(data, dict)
    assert isinstance(book := data["character_book"], dict)
    assert isinstance(entries := book["entries"], list)
    assert isinstance(entry := entries[0], dict)
    assert (entry["keys"], entry["content"]) == (["clock", "watch"], "{{char}} made it.")


# --- EXIF


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("file", [makers.jpeg, makers.webp])
def test_exif(order: str, file: Callable[[bytes], bytes]) -> None:
    """JSON and lists of byte values are read from the EXIF of JPEG and WEBP."""
    found = read(file(makers.tiff(makers.card(), order=order)))
    assert found.persona.name == "Ada"
    listed = ",".join(str(value) for value in makers.card()).encode()
    found = read(file(makers.tiff(listed, order=order)))
    assert found.persona.name == "Ada"
    assert "byte_list" in codes(found)
