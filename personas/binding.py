"""A lorebook that came alone becomes a character's."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from personas.card import read_card, write_card

if TYPE_CHECKING:
    from personas.importer import ImportedBook
    from personas.persona import JsonValue, Persona

__all__ = ["bind"]


def bind(persona: Persona, book: ImportedBook) -> Persona:
    """The persona with the book: as its own where it has none, else beside the one it has.

    Books beside the first are where RisuAI and others keep them, in `additional_lorebooks`; each
    keeps its scan depth and budget. Binding the same book twice changes nothing.
    """
    card: dict[str, JsonValue] = json.loads(write_card(persona))
    data = card["data"]
    assert isinstance(data, dict)  # write_card makes V3
    extensions = data["extensions"]
    assert isinstance(extensions, dict)
    bound: JsonValue = {"extensions": {}, **book.book, "name": book.name}
    more = extensions.get("additional_lorebooks")
    beside = more if isinstance(more, list) else []
    if bound in (data.get("character_book"), *beside):
        return persona
    if not isinstance(data.get("character_book"), dict):
        data["character_book"] = bound
    else:
        extensions["additional_lorebooks"] = [*beside, bound]
    raw = json.dumps(card).encode()
    return read_card(raw, id=persona.id, avatar=persona.avatar).persona
