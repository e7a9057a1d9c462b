"""CHARX and BYAF archives."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from personas import charx
from personas.archive import Archive
from personas.charx import Asset
from personas.limits import Findings, ImportLimits, Inflater
from personas.persona import CardError
from tests.personas import makers

if TYPE_CHECKING:
    from personas.persona import JsonValue

LIMITS = ImportLimits()


def opened(files: dict[str, bytes]) -> Archive:
    return Archive(makers.archive(files), LIMITS, Inflater(LIMITS), Findings())


def test_nearest_card() -> None:
    """Of several card.json the one nearest to the root counts, however it is written."""
    findings = Findings()
    raw, files = charx.read_charx(
        opened({"a/b/card.json": b"deep", "Card.JSON": b"near", "x": b""}), findings
    )
    assert raw == b"near"
    assert set(files) == {"a/b/card.json", "x"}
    assert [finding.code for finding in findings.found] == ["name_case"]


def test_no_card() -> None:
    """An archive without a card is refused."""
    with pytest.raises(CardError) as caught:
        charx.read_charx(opened({"a.json": b"{}"}), Findings())
    assert caught.value.code == "no_card"


@pytest.mark.parametrize(
    ("files", "where"),
    [
        ({"manifest.json": {}}, "characters"),
        ({"manifest.json": {"characters": ["characters/x.json"]}}, "characters/x.json"),
        (
            {
                "manifest.json": {"characters": ["characters/a.json"], "scenarios": ["s.json"]},
                "characters/a.json": {},
            },
            "s.json",
        ),
    ],
)
def test_byaf_without_parts(files: dict[str, JsonValue], where: str) -> None:
    """A Backyard archive that names what is not there is refused, naming it."""
    archive = opened({path: json.dumps(value).encode() for path, value in files.items()})
    with pytest.raises(CardError) as caught:
        charx.read_byaf(archive, LIMITS, Findings())
    assert (caught.value.code, caught.value.where) == ("no_card", where)


def test_byaf_findings() -> None:
    """More characters, more scenarios and missing pictures are findings."""
    parts: dict[str, JsonValue] = {
        "manifest.json": {
            "characters": ["characters/a.json", "b.json"],
            "scenarios": ["s.json", "t.json"],
        },
        "characters/a.json": {"name": "Ada", "images": [{"path": "gone.png"}, {}]},
        "s.json": {},
        "t.json": {},
    }
    findings = Findings()
    archive = opened({path: json.dumps(value).encode() for path, value in parts.items()})
    assert charx.is_byaf(archive)
    charx.read_byaf(archive, LIMITS, findings)
    assert {f.code for f in findings.found} == {"more_characters", "scenarios", "asset_missing"}


def test_main_icon() -> None:
    """The icon named main is the picture, else the first icon, else none."""
    first, main = Asset("a", b"1", "icon", "x"), Asset("b", b"2", "icon", "main")
    assert charx.main_icon([first, main]) == b"2"
    assert charx.main_icon([first]) == b"1"
    assert charx.main_icon([Asset("c", b"3", "emotion", "main")]) is None


def test_odd_assets() -> None:
    """Assets of any shape are findings at most."""
    findings = Findings()
    card: dict[str, JsonValue] = {"data": {"assets": [None, {"uri": 3}, {"uri": "file:///x"}]}}
    assert charx.name_assets(card, {}, findings) == ()
    assert [f.code for f in findings.found] == ["bad_asset", "bad_asset", "not_fetched"]
