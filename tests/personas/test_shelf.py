"""personas.shelf: a folder of files, read once each, and files that are taken in whole."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from personas.limits import ImportLimits
from personas.persona import CardError
from personas.shelf import Look, Shelf, slug
from tests.personas import makers

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from personas.persona import JsonValue


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_containers(tmp_path: Path) -> None:
    """Cards of every kind of file are read, named after their files."""
    (tmp_path / "a.json").write_bytes(makers.card())
    (tmp_path / "b.PNG").write_bytes(makers.png(makers.text(makers.card())))
    (tmp_path / "c.charx").write_bytes(makers.archive({"card.json": makers.card()}))
    (tmp_path / "d.jpg").write_bytes(makers.jpeg(makers.tiff(makers.card())))
    (tmp_path / "e.webp").write_bytes(makers.webp(makers.tiff(makers.card())))
    (tmp_path / "f.yaml").write_text("name: Fay\ncontext: A clerk.\ngreeting: Yes?\n")
    (tmp_path / "notes.txt").write_text("no card")
    (tmp_path / ".hidden.json").write_bytes(makers.card())
    (tmp_path / "folder.json").mkdir()
    shelf = Shelf(tmp_path)
    assert shelf.look().added == tuple("abcdef")
    assert {id: entry.container for id, entry in shelf.entries.items()} == {
        "a": "json",
        "b": "png",
        "c": "charx",
        "d": "jpeg",
        "e": "webp",
        "f": "text-generation-webui yaml",
    }
    assert shelf.troubles == ()


def test_picture_beside(tmp_path: Path) -> None:
    """A picture beside a JSON is its picture, with a card in it or not; alone it is the card."""
    card = makers.png(makers.text(makers.card(name="Inside")))
    for name, raw in (("a.json", makers.card()), ("a.png", card), ("b.png", card)):
        (tmp_path / name).write_bytes(raw)
    (tmp_path / "plain.png").write_bytes(makers.png())
    shelf = Shelf(tmp_path)
    assert shelf.look() == Look(added=("a", "b"))
    assert shelf.entries["a"].persona.name == "Ada"
    assert shelf.entries["a"].picture == tmp_path / "a.png"
    assert shelf.entries["b"].persona.name == "Inside"
    (tmp_path / "a.json").unlink()
    assert shelf.look() == Look(changed=("a",))
    assert shelf.entries["a"].persona.name == "Inside"


@pytest.mark.parametrize(
    ("name", "raw", "code"),
    [
        ("---.json", makers.card(), "bad_name"),
        ("a_.json", makers.card(), "id_taken"),
        ("b.json", b"[]", "not_a_card"),
        ("c.json", b'{"entries": {"0": {"key": ["x"], "content": "y"}}}', "no_character"),
        ("d.charx", makers.archive({"card.json": makers.card()})[:-4], None),
        ("e.json", b" " * 5000, "too_large"),
    ],
)
def test_trouble(tmp_path: Path, name: str, raw: bytes, code: str | None) -> None:
    """A file that cannot be read is named with the reason, and the others are there."""
    (tmp_path / "a.json").write_bytes(makers.card())
    (tmp_path / name).write_bytes(raw)
    shelf = Shelf(tmp_path, ImportLimits(file_bytes=4000))
    look = shelf.look()
    assert look.added == ("a",)
    [trouble] = look.troubles
    assert (trouble.file, trouble.kept) == (name, False)
    assert code in (None, trouble.code)
    assert shelf.look() == Look()


def test_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that did not change is not read again."""
    import personas.shelf as module

    read: list[str] = []
    really: Callable[[Path, int], bytes] = module._bytes

    def count(path: Path, limit: int) -> bytes:
        read.append(path.name)
        return really(path, limit)

    monkeypatch.setattr(module, "_bytes", count)
    for name in ("a", "b"):
        (tmp_path / f"{name}.json").write_bytes(makers.card(name=name))
    shelf = Shelf(tmp_path)
    shelf.look()
    os.utime(tmp_path / "b.json", ns=(1, 1))
    shelf.look()
    shelf.look()
    assert read == ["a.json", "b.json", "b.json"]


def test_add(tmp_path: Path) -> None:
    """A file is kept as it came, under an id of its own; the same character again is unchanged."""
    shelf = Shelf(tmp_path)
    raw = makers.png(makers.text(makers.card()))
    first = shelf.add(raw, "whatever.bin")
    assert (first.state, first.entry.persona.id, first.entry.container) == ("added", "ada", "png")
    assert first.avatar is not None
    assert (tmp_path / "ada.png").read_bytes() == raw
    assert shelf.add(raw, "again.png").state == "unchanged"
    other = shelf.add(makers.card(description="Another Ada."), "ada.json", with_avatar=False)
    assert (other.state, other.entry.persona.id) == ("added", "ada-2")
    third = shelf.add(makers.card(description="A third."), taken={"ada-3"})
    assert third.entry.persona.id == "ada-4"
    assert names(tmp_path) == ["ada-2.json", "ada-4.json", "ada.png"]
    assert shelf.look() == Look()
    assert Shelf(tmp_path).look().added == ("ada", "ada-2", "ada-4")


def test_replace(tmp_path: Path) -> None:
    """In place of a character: the file is the new one, whatever the kind of the old one was."""
    shelf = Shelf(tmp_path)
    shelf.add(makers.card(), "a.json")
    raw = makers.png(makers.text(makers.card(description="Newer.")))
    done = shelf.add(raw, "b.png", replace_id="ada")
    assert (done.state, done.entry.persona.description) == ("replaced", "Newer.")
    assert names(tmp_path) == ["ada.png"]
    assert shelf.add(raw, "b.png", replace_id="ada").state == "unchanged"
    assert shelf.add(makers.card(name="Bo"), replace_id="new").state == "added"
    assert [*shelf.entries] == ["ada", "new"]
    assert shelf.look() == Look()


def test_replace_keeps_the_picture(tmp_path: Path) -> None:
    """A newer JSON does not cost a character its picture; a newer picture takes its place."""
    shelf = Shelf(tmp_path)
    shelf.add(makers.png(makers.text(makers.card())))
    shelf.add(makers.card(description="Newer."), replace_id="ada")
    assert names(tmp_path) == ["ada.json", "ada.png"]
    assert shelf.entries["ada"].picture == tmp_path / "ada.png"
    assert shelf.entries["ada"].persona.description == "Newer."
    assert shelf.look() == Look()
    (tmp_path / "side.svg").write_text("<svg/>")
    with_side = makers.card(description="Drawn.")
    shelf.add(with_side, replace_id="ada", beside=tmp_path / "side.svg")
    (tmp_path / "side.svg").unlink()
    assert shelf.entries["ada"].picture == tmp_path / "ada.svg"
    shelf.add(makers.png(makers.text(makers.card(description="Last."))), replace_id="ada")
    assert names(tmp_path) == ["ada.png"]
    assert shelf.look() == Look()


def test_add_what_has_no_ending(tmp_path: Path) -> None:
    """A Character.AI definition is kept as the card that was made of it."""
    shelf = Shelf(tmp_path)
    raw = b"{{char}}: I mend clocks.\n{{user}}: Why?\n{{char}}: They stop.\nEND_OF_DIALOG\n"
    added = shelf.add(raw, "Clockmaker.txt")
    assert added.entry.file.name == "clockmaker.json"
    assert Shelf(tmp_path).look().added == ("clockmaker",)


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b"", "empty"),
        (b"<html>", "html_page"),
        (b'{"entries": {"0": {"key": ["x"], "content": "y"}}}', "no_character"),
    ],
)
def test_refused(tmp_path: Path, raw: bytes, code: str) -> None:
    """What is refused leaves nothing in the folder."""
    with pytest.raises(CardError) as refused:
        Shelf(tmp_path).add(raw, "x.json")
    assert refused.value.code == code
    assert names(tmp_path) == []


@pytest.mark.parametrize("id", ["../x", "/x", "a/b", "a.b", "", ".", "A", "a\0", "x" * 500])
def test_bad_id(tmp_path: Path, id: str) -> None:
    """An id that is no slug names no file, least of all one elsewhere."""
    folder = tmp_path / "in" / "here"
    folder.mkdir(parents=True)
    with pytest.raises(CardError) as refused:
        Shelf(folder).add(makers.card(), replace_id=id)
    assert refused.value.code == "bad_id"
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.slow
def test_speed(tmp_path: Path) -> None:
    """Two hundred typical cards a second are taken in on one core, pictures left as they are."""
    words = [f"lantern{n}" for n in range(10)]
    entries: JsonValue = [
        {"keys": [f"{words[n % 10]}{n}"], "content": " ".join(words * 5), "extensions": {}}
        for n in range(12)
    ]
    pictures = makers.chunk(b"juNk", os.urandom(500_000))  # as large as a picture is
    files = [
        makers.png(
            makers.text(
                makers.card(
                    name=f"Card {n}",
                    description=" ".join(words * 40),
                    mes_example=" ".join(words * 10),
                    alternate_greetings=[" ".join(words * 10)] * 2,
                    character_book={"entries": entries},
                )
            ),
            pictures,
        )
        for n in range(100)
    ]
    shelf = Shelf(tmp_path)
    began = time.process_time()
    for raw in files:
        assert shelf.add(raw, with_avatar=False).state == "added"
    assert len(files) / (time.process_time() - began) >= 200


def test_unwritable(tmp_path: Path) -> None:
    """A folder that cannot be written is a typed error."""
    shelf = Shelf(tmp_path / "gone")
    with pytest.raises(CardError) as refused:
        shelf.add(makers.card())
    assert refused.value.code == "unwritable"
    with pytest.raises(CardError) as unreadable:
        shelf.look()
    assert unreadable.value.code == "folder_unreadable"


def test_another_process(tmp_path: Path) -> None:
    """Two shelves over one folder never write over each other's new characters."""
    one, two = Shelf(tmp_path), Shelf(tmp_path)
    one.add(makers.card(description="One."))
    assert two.add(makers.card(description="Two.")).entry.persona.id == "ada-2"
    assert one.look().added == ("ada-2",)


def test_remove(tmp_path: Path) -> None:
    """A character goes with its file and picture; of an unknown id nothing does."""
    (tmp_path / "a.json").write_bytes(makers.card())
    (tmp_path / "a.png").write_bytes(makers.png())
    shelf = Shelf(tmp_path)
    shelf.look()
    assert not shelf.remove("b")
    assert shelf.remove("a")
    assert names(tmp_path) == []
    assert shelf.look() == Look()


@settings(max_examples=40)
@given(st.text(max_size=40))
def test_slug(name: str) -> None:
    """A slug is its own slug, and has nothing in it that a path or a URL minds."""
    found = slug(name)
    assert slug(found) == found
    assert not set(found) & set("/\\.:?#@% \n\0")
