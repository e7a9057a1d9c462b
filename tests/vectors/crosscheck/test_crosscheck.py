"""Our reader of cards against four others: every difference has its reason."""

from __future__ import annotations

import os

import pytest

from tests.vectors.crosscheck import harness


@pytest.fixture(scope="module")
def compared() -> tuple[tuple[harness.Case, ...], tuple[harness.Difference, ...]]:
    if lacking := harness.missing():
        assert "TEST_REQUIRE_READERS" not in os.environ, lacking
        pytest.skip(f"not compared with other readers: {lacking}")
    found = harness.cases()
    return found, harness.differences(found)


Compared = tuple[tuple[harness.Case, ...], tuple[harness.Difference, ...]]


def test_every_difference_has_a_reason(compared: Compared) -> None:
    """Nobody reads a card otherwise than we do, unless we say why."""
    told = {key for reason in harness.reasons() for key in reason.keys}
    assert [one for one in compared[1] if one.key not in told] == []


def test_every_reason_holds(compared: Compared) -> None:
    """What is said to differ does."""
    told = [key for reason in harness.reasons() for key in reason.keys]
    assert {*told} - {one.key for one in compared[1]} == set()
    assert len(told) == len({*told}), "a difference has two reasons"


def test_table(compared: Compared) -> None:
    """The page is what the harness writes now."""
    made = harness.table(*compared, harness.reasons())
    assert harness.TABLE.read_text(encoding="utf-8") == made, "run the harness with --write"
