"""The library, and the characters that it ships."""

from __future__ import annotations

import json
import logging
import re
from typing import TYPE_CHECKING
from xml.etree import ElementTree

import pytest

from personas.library import Library
from personas.lint import check
from personas.persona import CardError, Persona, PersonaNotFound, Place
from personas.shelf import Look
from tests.personas import makers

if TYPE_CHECKING:
    from pathlib import Path

SHIPPED = Library.shipped()
IDS = [persona.id for persona in SHIPPED.list()]


def test_shipped() -> None:
    """At least eight characters come with the package, and all of their cards are sound."""
    assert len(IDS) >= 8
    assert {"juno", "maren", "sable"} <= {*IDS}
    for persona in SHIPPED.list():
        report = SHIPPED.entry(persona.id).report
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
def test_shipped_lints_clean(persona: Persona) -> None:
    """A shipped card has not one remark, and its permanent text leaves room in a small context."""
    found = check(persona, SHIPPED.entry(persona.id).report, lambda text: len(text) // 4)
    assert found.remarks == ()
    assert found.permanent < 300
    assert sum(line.tokens for line in found.prompt) < 800


@pytest.mark.parametrize("persona", SHIPPED.list(), ids=lambda persona: persona.id)
def test_shipped_lore(persona: Persona) -> None:
    """A shipped character has a world: short entries by key, low in the chat, none twice."""
    [book] = persona.lore
    assert 6 <= len(book.entries) <= 12
    assert len({entry.name for entry in book.entries}) == len(book.entries)
    for entry in book.entries:
        assert entry.keys
        assert entry.whole_words
        assert (entry.place, entry.depth) == (Place.DEPTH, 2)
        assert "@@" not in entry.content
        assert 15 <= len(entry.content.split()) <= 60


def test_shipped_are_distinct() -> None:
    """No two shipped characters open alike, have the same tags or tell the same lore."""
    personas = SHIPPED.list()
    openings = [g for p in personas for g in (p.greeting, *p.alternate_greetings)]
    assert len({text.split()[0] + text.split()[1] for text in openings}) == len(openings)
    assert len({frozenset(p.tags) for p in personas}) == len(personas)
    lore = [entry.content for p in personas for book in p.lore for entry in book.entries]
    assert len(set(lore)) == len(lore) >= 60


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
    assert [p.id for p in library.list()] == [*IDS, "old-tom-2", "źrebię"]
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
    assert {p.id for p in library.list()} - {*IDS} == {"good"}
    skipped = [message for message in caplog.messages if message.startswith("card_skipped")]
    assert len(skipped) == 3
    for expected in ("code=bad_json where=1:9", "file=good.json code=id_taken", "code=bad_name"):
        assert any(expected in message for message in skipped)


def test_bad_folder(tmp_path: Path) -> None:
    """A folder that is not there is an error, not an empty one."""
    with pytest.raises(CardError) as refused:
        Library.open(tmp_path / "none")
    assert refused.value.code == "folder_unreadable"


def test_picture(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The picture is the file beside the card, made anew; a broken one, or gone since, is none."""
    for name in ("a", "b", "c"):
        write(tmp_path, f"{name}.json", name=name)
        (tmp_path / f"{name}.png").write_bytes(makers.png(makers.text(b"where it was taken")))
    (tmp_path / "b.png").write_bytes(b"PNG")
    library = Library.open(tmp_path)
    (tmp_path / "c.png").unlink()
    picture = library.avatar("a")
    assert picture is not None
    assert picture.media_type == "image/png"
    assert picture.data.startswith(makers.SIGNATURE)
    assert b"tEXt" not in picture.data
    assert library.avatar("a") is picture  # decoded once
    assert library.avatar("b") is None
    assert library.avatar("c") is None
    assert sum(message.startswith("avatar_unreadable") for message in caplog.messages) == 2


def test_picture_of_the_card_itself(tmp_path: Path) -> None:
    """A card that is a picture shows it, without what is written in it; a JSON has none."""
    (tmp_path / "ada.png").write_bytes(makers.png(makers.text(makers.card())))
    (tmp_path / "bea.json").write_bytes(makers.card(name="Bea"))
    library = Library.open(tmp_path)
    picture = library.avatar("ada")
    assert picture is not None
    assert picture.media_type == "image/png"
    assert b"ccv3" not in picture.data
    assert library.get("ada").avatar == "ada.png"
    assert library.avatar("bea") is None


def test_search(tmp_path: Path) -> None:
    """Words are looked for in name, tags and texts, in this order; tags must all be there."""
    write(tmp_path, "a.json", name="Ada", tags=["Clocks"], description="Likes the river.")
    write(tmp_path, "b.json", name="River", tags=["clocks", "Sea"], description="Talks.")
    write(tmp_path, "c.json", name="Cy", tags=["river"], description="Is late.")
    library = Library.open(tmp_path)

    def found(words: str, *tags: str) -> list[str]:
        return [p.id for p in library.search(words, tags) if p.id in "abc"]

    assert found("RIVER") == ["b", "c", "a"]
    assert found("likes river") == ["a"]
    assert found("", "CLOCKS") == ["a", "b"]
    assert found("river", "clocks", "sea") == ["b"]
    assert found("nothing like it") == found("", "none") == []
    assert len(library.search()) == len(library.list())


def test_tags(tmp_path: Path) -> None:
    """Tags are counted whatever their case, the most frequent first."""
    for name in ("a", "b", "c"):
        write(tmp_path, f"{name}.json", name=name, tags=["Odd", "odd", name])
    counts = Library.open(tmp_path).tags()
    assert counts["Odd"] == 3
    assert "odd" not in counts
    assert [*counts.values()] == sorted(counts.values(), reverse=True)


def test_add_and_remove(tmp_path: Path) -> None:
    """What is added is there at once; a shipped one can be covered, and never deleted."""
    library = Library.open(tmp_path)
    added = library.add(makers.card(name="Maren"), "Maren.json")
    assert (added.state, added.entry.persona.id) == ("added", "maren-2")
    covering = library.add(makers.card(name="Mine"), "x.json", replace_id="maren")
    assert covering.entry.persona.id == "maren"
    assert library.get("maren").name == "Mine"
    assert library.is_own("maren")
    library.remove("maren")
    assert library.get("maren").name == SHIPPED.get("maren").name
    assert not library.is_own("maren")
    with pytest.raises(CardError) as refused:
        library.remove("maren")
    assert refused.value.code == "shipped"
    with pytest.raises(PersonaNotFound):
        library.remove("nobody")
    with pytest.raises(CardError) as nowhere:
        SHIPPED.add(makers.card())
    assert nowhere.value.code == "unwritable"


def test_refresh(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A card that comes, changes, breaks or goes is seen; a broken one keeps its last state."""
    library = Library.open(tmp_path)
    assert not library.refresh()
    write(tmp_path, "a.json", name="Ada")
    assert library.refresh().added == ("a",)
    write(tmp_path, "a.json", name="Adah", description="Changed.")
    assert library.refresh().changed == ("a",)
    assert library.search("changed")
    (tmp_path / "a.json").write_bytes(b"{")
    [trouble] = library.refresh().troubles
    assert (trouble.code, trouble.kept) == ("bad_json", True)
    assert library.get("a").name == "Adah"
    assert library.troubles == (trouble,)
    assert "card_skipped file=a.json code=bad_json" in caplog.text
    assert not library.refresh()  # it is said once
    write(tmp_path, "a.json", name="Adah", description="Changed.")
    assert library.refresh() == Look()
    assert not library.troubles
    (tmp_path / "a.json").unlink()
    assert library.refresh().removed == ("a",)
    with pytest.raises(PersonaNotFound):
        library.get("a")
