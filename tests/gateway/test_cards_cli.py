"""gateway.cards_cli: what an author types, and what comes back."""

from __future__ import annotations

import io
import json
import sys
from typing import TYPE_CHECKING

import pytest

from gateway.cards_cli import ENDINGS
from gateway.cli import main
from personas.importer import ImportedCard, read_any
from personas.library import Library
from tests.personas import makers

if TYPE_CHECKING:
    from pathlib import Path

    from personas.persona import JsonValue


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, and a data folder below it that is not there yet."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GREENROOM_DATA", str(tmp_path / "data"))
    # The command sets up the logs of its process; this process is the tests'.
    monkeypatch.setattr("gateway.logs.configure", lambda config: None)
    return tmp_path


class Said:
    """What a command printed; `ok` is its exit code."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys
        self.out = self.err = ""

    def __call__(self, *words: object) -> int:
        code = main(["cards", *(str(word) for word in words)])
        self.out, self.err = self._capsys.readouterr()
        return code


@pytest.fixture
def cards(capsys: pytest.CaptureFixture[str]) -> Said:
    return Said(capsys)


def test_import_prints_the_report(place: Path, cards: Said) -> None:
    """Each field is named as executed, preserved or dropped, and each repair and oddity is told."""
    raw = makers.card(tags=7, personality=None, mood="odd", first_mes="See ![](http://x/y.png)")
    (place / "Ada.png").write_bytes(makers.png(makers.text(raw), end=b"more"))
    assert cards("import", "Ada.png") == 0
    assert cards.out.startswith("Ada.png: added as ada (png)\n")
    lines = {line.split()[0]: line for line in cards.out.splitlines()[1:] if line[2] != " "}
    assert "description" in lines["executed"]
    assert "mood" in lines["preserved"]
    assert "tags" in lines["dropped"]
    assert "personality" in lines["repaired"]
    assert "not_fetched" in cards.out
    assert (place / "data" / "personas" / "ada.png").exists()


def test_import_again_and_newer(place: Path, cards: Said) -> None:
    """The same card is unchanged, another of its name a second one, with --replace a revision."""
    (place / "a.json").write_bytes(makers.card())
    (place / "b.json").write_bytes(makers.card(description="Other."))
    states = []
    for words in (("a.json",), ("a.json",), ("b.json",), ("--replace", "b.json")):
        assert cards("import", *words) == 0
        states.append(cards.out.splitlines()[0])
    assert states == [
        "a.json: added as ada (json)",
        "a.json: unchanged as ada (json)",
        "b.json: added as ada-2 (json)",
        "b.json: unchanged as ada-2 (json)",
    ]
    (place / "c.json").write_bytes(makers.card(description="Newer."))
    assert cards("import", "--replace", "c.json") == 0
    assert cards.out.splitlines()[0] == "c.json: replaced as ada (json)"
    (place / "m.json").write_bytes(makers.card(name="Maren"))
    assert cards("import", "m.json") == 0
    assert "added as maren-2" in cards.out  # a shipped one is not covered unasked


def test_import_a_folder(place: Path, cards: Said) -> None:
    """Folders are read to their depth; bad files are refused one by one; one sum at the end."""
    deep = place / "many" / "deeper"
    deep.mkdir(parents=True)
    for number in range(8):
        (deep / f"{number}.json").write_bytes(makers.card(name=f"Card {number}"))
    (deep / ".hidden.json").write_bytes(makers.card())
    (deep / "notes.txt").write_text("no card")
    (place / "many" / "bad.json").write_bytes(b"{")
    (place / "many" / "lore.json").write_bytes(b'{"entries": {"0": {"key": ["x"]}}}')
    report = place / "report.json"
    assert cards("import", "many", "--report", report) == 1
    assert "many/bad.json: refused (bad_json): " in cards.out
    assert "many/lore.json: refused (no_character): " in cards.out
    assert "executed" not in cards.out  # of many files only with -v
    assert "10 files: 2 refused, 8 added (" in cards.out
    whole = json.loads(report.read_text())
    assert whole["counts"] == {"refused": 2, "added": 8}
    bad, *_, last = whole["files"]
    assert (bad["file"], bad["code"]) == ("many/bad.json", "bad_json")
    assert last["persona"] == "card-7"
    assert "data.name" in last["report"]["executed"]
    assert len(Library.open(place / "data" / "personas").list()) == 8 + len(
        Library.shipped().list()
    )
    assert cards("import", "many", "-v") == 1
    assert "8 unchanged" in cards.out


def test_portraits_beside(place: Path, cards: Said) -> None:
    """A picture beside a JSON comes along; alone in a folder it is no error, asked for it is."""
    many = place / "many"
    many.mkdir()
    (many / "ada.json").write_bytes(makers.card())
    for name in ("ada.png", "other.png"):
        (many / name).write_bytes(makers.png())
    assert cards("import", many) == 0
    assert "other.png: skipped (no_card): just a picture" in cards.out
    library = Library.open(place / "data" / "personas")
    assert library.avatar("ada") is not None
    assert cards("import", many / "other.png") == 1
    assert "refused (no_card)" in cards.out


def test_check_takes_nothing_in(place: Path, cards: Said) -> None:
    """--check reads everything, the picture too, and writes nothing."""
    (place / "a.png").write_bytes(makers.png(makers.text(makers.card())))
    (place / "lore.json").write_bytes(b'{"entries": {"0": {"key": ["x"], "content": "y"}}}')
    assert cards("import", "--check", "a.png", "lore.json") == 0
    assert "a.png: read well: Ada (png)" in cards.out
    assert "lore.json: lorebook: a lorebook of 1 entries, without a character" in cards.out
    assert not (place / "data").exists()


def test_progress_is_for_terminals(
    place: Path, cards: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a terminal a bar grows on stderr and is gone at the end."""
    (place / "many").mkdir()
    for number in range(8):
        (place / "many" / f"{number}.json").write_bytes(makers.card(name=f"Card {number}"))
    assert cards("import", "many") == 0
    assert cards.err == ""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    assert cards("import", "many") == 0
    shown = terminal.getvalue()
    assert "8/8" in shown
    assert shown.endswith("\r\x1b[K")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["import", "none.json"], "none.json is not there"),
        (["import", "."], "no file that could hold a character is there"),
        (["export", "marn"], "no persona 'marn'; did you mean 'maren'?"),
        (["export", "maren", "-o", "there.json"], "there.json is there already"),
        (["export", "maren", "-o", "no/x.json"], "no/x.json: No such file or directory"),
        (["lint", "there.txt"], "neither"),
        (["show", "lore.json"], "a lorebook of 1 entries, without a character"),
        (["new", "!?"], "'!?' has no letter and no digit to name a file after"),
    ],
)
def test_one_line_errors(place: Path, cards: Said, words: list[str], line: str) -> None:
    """What cannot be done is one line on stderr and exit code 2."""
    if words[0] != "import":
        (place / "there.json").write_bytes(b"{}")
        (place / "there.txt").write_text("just words")
        (place / "lore.json").write_bytes(b'{"entries": {"0": {"key": ["x"], "content": "y"}}}')
    assert cards(*words) == 2
    assert cards.err.startswith("greenroom: ")
    assert cards.err.count("\n") == 1
    assert line in cards.err or "there.txt" in words
    assert cards.out == ""


@pytest.mark.parametrize("form", sorted(ENDINGS))
def test_export(place: Path, cards: Said, form: str) -> None:
    """What goes out in any form comes in again as the same character."""
    (place / "in.png").write_bytes(makers.png(makers.text(makers.card(mood="odd"))))
    assert cards("import", "in.png") == 0
    assert cards("export", "ada", "--as", form) == 0
    out = place / f"ada{ENDINGS[form]}"
    assert f"{out.name}: Ada as {form}" in cards.out
    again = read_any(out.read_bytes(), filename=out.name)
    assert isinstance(again, ImportedCard)
    assert (again.persona.name, again.persona.description) == ("Ada", "Clocks.")
    data = again.persona.card["data"]
    assert isinstance(data, dict)
    assert data["mood"] == "odd"
    assert (again.avatar is not None) == (form in ("png", "charx"))


def test_export_says_what_is_lost(place: Path, cards: Said) -> None:
    """Where a form cannot tell everything, each loss is named."""
    assert cards("export", "maren", "--as", "v2", "-o", "x.json") == 0
    assert "not told   readers of V2 ignore this field (data.nickname)" in cards.out
    folder = place / "data" / "personas"
    folder.mkdir(parents=True)
    (folder / "ada.json").write_bytes(makers.card())
    (folder / "ada.svg").write_text('<svg viewBox="0 0 9 9"><text/></svg>')
    assert cards("export", "ada", "--as", "png") == 0
    assert "not told   the drawing cannot be drawn" in cards.out
    assert cards("export", "maren", "-o", "x.json", "--force") == 0
    assert "not told" not in cards.out


def test_shipped_portraits_go_along(place: Path, cards: Said) -> None:
    """A drawn portrait is in the exported picture and archive, as pixels."""
    for form in ("png", "charx"):
        assert cards("export", "maren", "--as", form) == 0
        assert "not told" not in cards.out
        again = read_any((place / f"maren{ENDINGS[form]}").read_bytes())
        assert isinstance(again, ImportedCard)
        assert again.avatar is not None
        assert len(again.avatar) > 3000


def test_bind(place: Path, cards: Said) -> None:
    """A lorebook alone becomes a character's, a shipped one's too; portrait and all stay."""
    (place / "lore.json").write_bytes(b'{"entries": {"0": {"key": ["fog"], "content": "Thick."}}}')
    (place / "ada.json").write_bytes(makers.card())
    assert cards("import", "ada.json") == 0
    assert cards("bind", "ada", "lore.json") == 0
    assert cards.out == "lore.json: ada has 1 lorebooks with 1 entries\n"
    shipped = Library.shipped().get("maren")
    assert cards("bind", "maren", "lore.json", "lore.json") == 0
    bound = Library.open(place / "data" / "personas")
    assert len(bound.get("maren").lore) == 2
    assert bound.get("maren").greeting == shipped.greeting
    assert bound.avatar("maren") is not None
    assert cards("bind", "maren", "ada.json") == 2
    assert "is a character, not a lorebook" in cards.err
    assert cards("bind", "nobody", "lore.json") == 2


def test_export_to_stdout(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    """- is standard output, with nothing else on it."""
    assert main(["cards", "export", "maren", "-o", "-"]) == 0
    out, _ = capfdbinary.readouterr()
    assert json.loads(out)["data"]["nickname"] == "Maren"


def test_new_lint_import(place: Path, cards: Said) -> None:
    """A new card is clean from the start, and the commands it names work."""
    assert cards("new", "Tom Ash") == 0
    assert cards("lint", "tom-ash.json") == 0
    assert "Tom Ash (tom-ash.json): clean" in cards.out
    assert "estimated from their length" in cards.out
    assert "permanent text in every prompt" in cards.out
    assert "---" not in cards.out
    assert cards("lint", "--prompt", "tom-ash.json") == 0
    assert cards.out.endswith("Hello.\n")
    assert cards("new", "Tom Ash") == 2
    assert cards("import", "tom-ash.json") == 0


def test_lint_finds(place: Path, cards: Said) -> None:
    """A clock in permanent text is named with its field, and the exit code says so."""
    (place / "a.json").write_bytes(makers.card(description="It is {{time}}. " + "long " * 2000))
    assert cards("lint", "a.json", "maren", "--context", "2048") == 1
    assert "warning  clock_in_permanent" in cards.out
    assert "<- over" in cards.out
    assert "error" in cards.out
    assert "Maren Skaale (maren): clean" in cards.out


def test_show(place: Path, cards: Said) -> None:
    """Texts, lorebook and report of a character; its prompt message by message."""
    book: JsonValue = {
        "entries": [{"keys": ["river"], "content": "It is deep.", "name": "the river"}]
    }
    (place / "a.json").write_bytes(makers.card(character_book=book, tags=["clocks"]))
    assert cards("show", "a.json") == 0
    for part in ("Ada (ada, revision ", "Clocks.", "the river [river] It is deep.", "executed"):
        assert part in cards.out
    assert cards("show", "--prompt", "a.json") == 0
    assert cards.out.startswith("--- system · ")
    assert cards.out.endswith("Hello.\n")


def test_list(place: Path, cards: Said) -> None:
    """A search by words and tags; broken files are named; nothing found is exit code 1."""
    (place / "a.json").write_bytes(makers.card(tags=["Clocks"]))
    assert cards("import", "a.json") == 0
    (place / "data" / "personas" / "bad.json").write_bytes(b"{")
    assert cards("list", "--tag", "clocks") == 0
    assert cards.out == f"{'ada':<24} Ada  [Clocks]\n"
    assert "bad.json: " in cards.err
    assert cards("list", "zzz", "yyy") == 1
    assert cards("list") == 0
    assert len(cards.out.splitlines()) == 1 + len(Library.shipped().list())
