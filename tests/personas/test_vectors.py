"""Every vector: what is on disk is what is made, its claims hold, and nothing is lost by a copy."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from personas import exporter
from personas.importer import ImportedCard, read_any
from tests.vectors import make
from tests.vectors.make import CASES, FOLDER
from tests.vectors.pieces import Case

if TYPE_CHECKING:
    from personas.persona import JsonValue

ROWS = 21
READABLE = [case for case in CASES if (FOLDER / case.name / "parse.json").is_file()]


def named(case: Case) -> str:
    return case.name


def read(raw: bytes) -> ImportedCard:
    found = read_any(raw, with_avatar=False)
    assert isinstance(found, ImportedCard)
    return found


@pytest.mark.parametrize("case", CASES, ids=named)
def test_case(case: Case) -> None:
    """The claims hold, and the files on disk are those that are made."""
    wanted = make.files(case)
    folder = FOLDER / case.name
    assert {path: path.read_bytes() for path in folder.iterdir()} == wanted


def test_whole_set() -> None:
    """There are 60 cases or more, each with a claim, for every row; and no folder of none."""
    assert len(CASES) >= 60
    assert len({case.name for case in CASES}) == len(CASES)
    assert all(case.claims for case in CASES)
    assert {row for case in CASES for row in case.rows} == set(range(1, ROWS + 1))
    assert {path.name for path in FOLDER.iterdir() if path.is_dir()} == {c.name for c in CASES}
    assert all(len(case.raw) <= 100_000 for case in CASES)


def test_claims_can_fail() -> None:
    """A claim that does not hold is told, whatever its kind."""
    case = next(case for case in CASES if case.name == "json-v3")
    made = make.expected(case)
    wrong: dict[str, JsonValue] = {
        "error": "no_card",
        "refused": True,
        "container": "png",
        "parse": {"/name": "Somebody"},
        "book": {"/entries/0": {}},
        "assets": ["a.png"],
        "executed": ["data.nothing"],
        "findings": ["bad_crc"],
        "said": ["Somebody"],
        "unsaid": ["Ferrywoman"],
        "once": ["e"],
        "order": ["Good evening.", "Ferrywoman"],
        "spoken": ["Ferrywoman"],
        "greetings": [],
        "prompt_error": True,
        "no such claim": True,
    }
    for claim, value in wrong.items():
        other = Case(case.name, "", (), case.ending, case.raw, {claim: value})
        assert [*make.failures(other, made)] == [f"{claim}: {value!r}"]


@pytest.mark.parametrize("case", READABLE, ids=named)
@pytest.mark.parametrize("form", ["json-2", "json-3", "png"])
def test_copy(case: Case, form: str) -> None:
    """What we write and read again is the same character, unknown keys included."""
    first = read_any(case.raw, filename=f"input.{case.ending}", with_avatar=False)
    assert isinstance(first, ImportedCard)
    if form == "png":
        copied = exporter.to_png(first.persona)
    else:
        copied = exporter.to_json(first.persona, version=2 if form == "json-2" else 3)
    again = read(copied)
    told, wanted = (json.loads(exporter.to_json(p.persona)) for p in (again, first))
    if form == "json-2":  # it says so itself, and has no decorators
        assert {*wanted["data"]} <= {*told["data"]}
        for persona in (told, wanted):
            persona.pop("spec"), persona.pop("spec_version")
            persona["data"].pop("character_book", None)
        told = {key: told[key] for key in wanted}
        told["data"] = {key: told["data"][key] for key in wanted["data"]}
    assert told == wanted
