"""The library, and the characters that it ships."""

from __future__ import annotations

import json
import logging
import re
from typing import TYPE_CHECKING
from xml.etree import ElementTree

import pytest

from personas.library import Library
from personas.persona import CardError, Persona, PersonaNotFound

if TYPE_CHECKING:
    from pathlib import Path

SHIPPED = Library.shipped()


def test_shipped() -> None:
    """Three characters come with the package, and all of their cards are sound."""
    assert [persona.id for persona in SHIPPED.list()] == ["juno", "maren", "sable"]
    for persona in SHIPPED.list():
        report = SHIPPED.imported(persona.id).report
        assert report.repaired == report.dropped == ()


@pytest.mark.parametrize("persona", SHIPPED.list(), ids=lambda persona: persona.id)
def test_shipped_complete(persona: Persona) -> None:
    """A shipped card leaves no field empty that shows or steers, and stays short."""
    assert persona.card["spec"] == "chara_card_v3"
    for text in (persona.name, persona.greeting, persona.tagline, persona.creator_notes):
        assert text.strip()
    assert len(persona.tagline) <= 90
    assert persona.creator
    assert persona.character_version
    assert persona.tags
    assert len(persona.alternate_greetings) >= 2
    assert persona.examples.count("<START>") >= 3
    permanent = f"{persona.description} {persona.personality} {persona.scenario}"
    assert 100 <= len(permanent.split()) <= 200
    lines = re.findall(r"^\{\{char\}\}: (.*)", persona.examples, re.MULTILINE)
    assert all(1 <= len(re.findall(r"[.!?](?: |$)", line)) <= 4 for line in lines)


@pytest.mark.parametrize("persona", SHIPPED.list(), ids=lambda persona: persona.id)
def test_shipped_avatar(persona: Persona) -> None:
    """A shipped picture is a small square SVG without scripts and references."""
    avatar = SHIPPED.avatar(persona.id)
    assert avatar is not None
    assert avatar.media_type == "image/svg+xml"
    assert len(avatar.data) < 6000
    root = ElementTree.fromstring(avatar.data)
    assert root.get("viewBox") == "0 0 256 256"
    for node in root.iter():
        assert not node.tag.endswith(("script", "image", "foreignObject", "style", "use"))
        assert not [name for name in node.attrib if name.startswith("on") or "href" in name]


def test_not_found() -> None:
    """An unknown id names the nearest one there is."""
    for asked, near in (("marn", "maren"), ("MAREN", "maren"), ("zzzz", None), ("x" * 10**6, None)):
        with pytest.raises(PersonaNotFound) as missing:
            SHIPPED.get(asked)
        assert missing.value.nearest == near
    with pytest.raises(PersonaNotFound):
        SHIPPED.avatar("nobody")


def write(folder: Path, file: str, **data: object) -> None:
    (folder / file).write_text(json.dumps({"spec": "chara_card_v3", "data": data}))


def test_folder(tmp_path: Path) -> None:
    """Cards of a folder join the shipped ones, named after their files."""
    write(tmp_path, "Old Tom_2.JSON", name="Tom")
    write(tmp_path, "Źrebię.json", name="Foal")
    (tmp_path / "notes.txt").write_text("no card")
    (tmp_path / "more.json").mkdir()
    library = Library.open(tmp_path)
    assert [p.id for p in library.list()] == ["juno", "maren", "sable", "old-tom-2", "źrebię"]
    assert library.get("old-tom-2").name == "Tom"


def test_folder_replaces(tmp_path: Path) -> None:
    """A card of one's own takes the place of a shipped one of the same id."""
    write(tmp_path, "maren.json", name="Mine")
    library = Library.open(tmp_path)
    assert library.get("maren").name == "Mine"
    assert library.avatar("maren") is None


def test_bad_card(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A bad card is logged and left out; the others load."""
    write(tmp_path, "good.json", name="Good")
    write(tmp_path, "GOOD_.json", name="Double")
    write(tmp_path, "---.json", name="Nameless")
    (tmp_path / "bad.json").write_bytes(b'{"name": ')
    (tmp_path / "gone.json").symlink_to(tmp_path / "nowhere")
    with caplog.at_level(logging.WARNING):
        library = Library.open(tmp_path)
    assert {p.id for p in library.list()} - {"juno", "maren", "sable"} == {"good"}
    skipped = [message for message in caplog.messages if message.startswith("card_skipped")]
    assert len(skipped) == 3
    for expected in ("code=bad_json where=1:10", "code=id_taken where=good", "code=bad_name"):
        assert any(expected in message for message in skipped)


def test_bad_folder(tmp_path: Path) -> None:
    """A folder that is not there is an error, not an empty one."""
    with pytest.raises(CardError) as refused:
        Library.open(tmp_path / "none")
    assert refused.value.code == "folder_unreadable"


def test_picture(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The picture is the file beside the card; one too large, or gone since, is none."""
    for name in ("a", "b", "c"):
        write(tmp_path, f"{name}.json", name=name)
        (tmp_path / f"{name}.png").write_bytes(b"PNG")
    (tmp_path / "b.png").write_bytes(b"\0" * ((4 << 20) + 1))
    library = Library.open(tmp_path)
    (tmp_path / "c.png").unlink()
    assert library.avatar("a") == (b"PNG", "image/png")
    assert library.avatar("b") is None
    assert library.avatar("c") is None
    assert sum(message.startswith("avatar_unreadable") for message in caplog.messages) == 2
