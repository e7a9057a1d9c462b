"""personas.binding: a book alone finds its character."""

from __future__ import annotations

import json

from personas.binding import bind
from personas.card import read_card, write_card
from personas.importer import ImportedBook, read_any
from tests.personas import makers

WORLD = {"entries": {"0": {"key": ["river"], "content": "It is deep.", "comment": "the river"}}}


def book(content: str = "It is deep.", name: str = "World.json") -> ImportedBook:
    world = {"entries": {"0": {**WORLD["entries"]["0"], "content": content}}}
    found = read_any(json.dumps(world).encode(), filename=name)
    assert isinstance(found, ImportedBook)
    return found


def test_first_book() -> None:
    """Of a character without a book it becomes the book, and is executed."""
    persona = read_card(makers.card(mood="odd"), id="ada").persona
    bound = bind(persona, book())
    [lore] = bound.lore
    [entry] = lore.entries
    assert (entry.keys, entry.content) == (("river",), "It is deep.")
    assert bound.revision != persona.revision
    assert b"odd" in write_card(bound)
    assert bind(bound, book()) is bound


def test_second_book() -> None:
    """A character that has a book keeps it; the other stands beside it, each once."""
    persona = bind(read_card(makers.card(), id="ada").persona, book())
    both = bind(persona, book("It is wide.", "Other.json"))
    assert [b.entries[0].content for b in both.lore] == ["It is deep.", "It is wide."]
    assert bind(both, book("It is wide.", "Other.json")) is both
    again = read_card(write_card(both), id="ada").persona
    assert again.lore == both.lore
