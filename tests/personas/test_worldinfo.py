"""Lorebooks that come without a character."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from personas.limits import Findings
from personas.persona import CardError
from personas.worldinfo import book_from, is_book, worldinfo_from

if TYPE_CHECKING:
    from personas.persona import JsonValue

ENTRY: dict[str, JsonValue] = {
    "uid": 4,
    "key": ["clock", "/tick(tock)?/i"],
    "keysecondary": ["shop"],
    "comment": "The clock",
    "content": "It is late.",
    "constant": False,
    "selective": True,
    "selectiveLogic": 3,
    "order": 50,
    "position": 4,
    "depth": 2,
    "role": 1,
    "disable": True,
    "probability": 40,
    "useProbability": True,
    "excludeRecursion": True,
    "sticky": 3,
    "somethingNew": {"a": [1]},
}


def test_world_info() -> None:
    """World info's keys go where SillyTavern puts them in a card's book."""
    book = book_from({"name": "Town", "entries": {"4": ENTRY}, "originalData": None}, Findings())
    assert book["name"] == "Town"
    assert book["extensions"] == {"world_info": {"originalData": None}}
    assert book["entries"] == [
        {
            "id": 4,
            "keys": ["clock", "/tick(tock)?/i"],
            "secondary_keys": ["shop"],
            "comment": "The clock",
            "content": "It is late.",
            "constant": False,
            "selective": True,
            "insertion_order": 50,
            "enabled": False,
            "use_regex": False,
            "extensions": {
                "selectiveLogic": 3,
                "position": 4,
                "depth": 2,
                "role": 1,
                "probability": 40,
                "useProbability": True,
                "exclude_recursion": True,
                "sticky": 3,
                "somethingNew": {"a": [1]},
            },
        }
    ]


def test_way_back() -> None:
    """World info goes out as it came in, under new numbers."""
    world: dict[str, JsonValue] = {"name": "Town", "entries": {"0": ENTRY}, "x": 1}
    assert worldinfo_from(book_from(world, Findings())) == world


@pytest.mark.parametrize(("number", "place"), [(0, "before_char"), (1, "after_char")])
def test_position(number: int, place: str) -> None:
    """The two positions that a card's book knows are named as there."""
    book = book_from({"entries": {"0": {**ENTRY, "position": number}}}, Findings())
    assert isinstance(entries := book["entries"], list)
    assert isinstance(entry := entries[0], dict)
    assert entry["position"] == place


def test_lists_and_oddities() -> None:
    """A list of a book's own entries stays as it is; what is no entry is named."""
    findings = Findings()
    kept: dict[str, JsonValue] = {"keys": ["a"], "content": "b", "anything": 1}
    assert book_from({"entries": [kept, 3]}, findings)["entries"] == [kept]
    assert findings.found[0].code == "dropped"


def test_v3_book() -> None:
    """V3's standalone lorebook is its data."""
    assert book_from({"spec": "lorebook_v3", "data": {"entries": []}}, Findings()) == {
        "entries": []
    }
    with pytest.raises(CardError):
        book_from({"spec": "lorebook_v3"}, Findings())
    assert not is_book({"entries": [], "first_mes": ""})


@given(st.dictionaries(st.sampled_from([*ENTRY, "extensions", "y"]), st.none() | st.just([1])))
def test_any_entry(entry: dict[str, JsonValue]) -> None:
    """No shape of an entry is an error."""
    worldinfo_from(book_from({"entries": {"a": entry}}, Findings()))
