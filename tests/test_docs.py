"""The maps match the land."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
STRUCTURE = ROOT / "docs" / "structure.md"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def named_files(text: str) -> set[str]:
    """Paths in back quotes: those with a folder, or a suffix we use."""
    names = re.findall(r"`([\w./-]+)`", text)
    return {n for n in names if re.fullmatch(r"(?!/)[\w.-]+(/[\w.-]*)+", n) and " " not in n}


def test_structure_is_short() -> None:
    """The map stays a map: at most 80 lines."""
    assert len(STRUCTURE.read_text().splitlines()) <= 80


def test_structure_names_real_files() -> None:
    """Every file and folder that the map names exists."""
    names = named_files(STRUCTURE.read_text())
    assert len(names) > 20
    missing = sorted(name for name in names if not (ROOT / name).exists())
    assert missing == []


def test_structure_names_every_module() -> None:
    """Every module of the four rooms is on the map."""
    text = STRUCTURE.read_text()
    rooms = ("backends", "gateway", "kvstore", "personas")
    modules = [p for room in rooms for p in (ROOT / room).rglob("*.py") if p.name != "__init__.py"]
    left_out = sorted(
        p.relative_to(ROOT).as_posix()
        for p in modules
        if "migrations/versions" not in p.as_posix() and f"`{p.relative_to(ROOT)}`" not in text
    )
    assert left_out == []


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    """Every relative link and picture of a page exists."""
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_files_stay_small() -> None:
    """No source file passes about 400 lines without saying why in its docstring."""
    rooms = ("backends", "benchmarks", "gateway", "kvstore", "personas", "tests")
    for path in (p for room in rooms for p in (ROOT / room).rglob("*.py")):
        text = path.read_text()
        if len(text.splitlines()) > 450:
            reason = re.search(r"[Ll]onger than", text.split('"""')[1])
            assert reason, f"{path} has {len(text.splitlines())} lines and no reason"
