"""Lorebooks that come alone: SillyTavern's world info and V3's standalone book, as a V3 book."""

from __future__ import annotations

from typing import TYPE_CHECKING

from personas.persona import CardError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from personas.limits import Findings
    from personas.persona import JsonValue

__all__ = ["book_from", "is_book", "worldinfo_from"]

# World info's key -> the book entry's own key.
_FIELDS = {
    "uid": "id",
    "key": "keys",
    "keysecondary": "secondary_keys",
    "comment": "comment",
    "content": "content",
    "constant": "constant",
    "selective": "selective",
    "order": "insertion_order",
}
# World info's key -> where SillyTavern keeps it in an entry's extensions.
_EXTENSIONS = {
    "position": "position",
    "excludeRecursion": "exclude_recursion",
    "preventRecursion": "prevent_recursion",
    "delayUntilRecursion": "delay_until_recursion",
    "displayIndex": "display_index",
    "probability": "probability",
    "useProbability": "useProbability",
    "depth": "depth",
    "selectiveLogic": "selectiveLogic",
    "group": "group",
    "groupOverride": "group_override",
    "groupWeight": "group_weight",
    "useGroupScoring": "use_group_scoring",
    "scanDepth": "scan_depth",
    "caseSensitive": "case_sensitive",
    "matchWholeWords": "match_whole_words",
    "automationId": "automation_id",
    "role": "role",
    "vectorized": "vectorized",
    "sticky": "sticky",
    "cooldown": "cooldown",
    "delay": "delay",
    "outletName": "outlet_name",
    "triggers": "triggers",
    "ignoreBudget": "ignore_budget",
    "matchPersonaDescription": "match_persona_description",
    "matchCharacterDescription": "match_character_description",
    "matchCharacterPersonality": "match_character_personality",
    "matchCharacterDepthPrompt": "match_character_depth_prompt",
    "matchScenario": "match_scenario",
    "matchCreatorNotes": "match_creator_notes",
}
_NAMED = {new: old for old, new in _EXTENSIONS.items()}


def is_book(card: Mapping[str, JsonValue]) -> bool:
    """Whether a JSON object is a lorebook and no card."""
    if card.get("spec") == "lorebook_v3":
        return True
    entries = card.get("entries")
    return isinstance(entries, (dict, list)) and not card.keys() & {
        "data",
        "first_mes",
        "char_name",
    }


def book_from(card: Mapping[str, JsonValue], findings: Findings) -> dict[str, JsonValue]:
    """The book as a V3 `character_book`; unknown keys stay in `extensions`.

    Raises `CardError`: `not_a_card`.
    """
    if card.get("spec") == "lorebook_v3":
        data = card.get("data")
        if not isinstance(data, dict):
            raise CardError("not_a_card", "the lorebook has no data", where="data")
        return dict(data)
    entries = card.get("entries")
    if isinstance(entries, dict):
        items = [*entries.values()]
    elif isinstance(entries, list):
        items = entries
    else:
        raise CardError("not_a_card", "the lorebook has no entries", where="entries")
    read: list[JsonValue] = []
    for number, item in enumerate(items):
        if isinstance(item, dict):
            read.append(_entry(item))
        else:
            findings.add("dropped", "an entry that is no object", where=f"entries.{number}")
    book: dict[str, JsonValue] = {
        key: value for key, value in card.items() if key in ("name", "description")
    }
    others: dict[str, JsonValue] = {
        key: value for key, value in card.items() if key not in ("entries", *book)
    }
    findings.add("converted", f"{len(read)} entries of world info became a lorebook")
    return book | {"extensions": {"world_info": others} if others else {}, "entries": read}


def worldinfo_from(book: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    """A V3 book as SillyTavern's world info, the way back of `book_from`."""
    items = book.get("entries")
    entries: dict[str, JsonValue] = {}
    for number, item in enumerate(items if isinstance(items, list) else []):
        if isinstance(item, dict):
            entries[str(number)] = _item(item, number)
    extensions = book.get("extensions")
    others = extensions.get("world_info") if isinstance(extensions, dict) else None
    named: dict[str, JsonValue] = {
        key: value for key, value in book.items() if key in ("name", "description")
    }
    return named | (others if isinstance(others, dict) else {}) | {"entries": entries}


def _entry(item: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    if "keys" in item and "key" not in item:
        return dict(item)  # a book's entry already
    entry: dict[str, JsonValue] = {"keys": [], "content": "", "insertion_order": 100}
    extensions: dict[str, JsonValue] = {}
    for key, value in item.items():
        if key in _FIELDS:
            entry[_FIELDS[key]] = value
        elif key == "disable":
            entry["enabled"] = not value
        elif key == "extensions" and isinstance(value, dict):
            extensions = {**value, **extensions}
        else:
            extensions[_EXTENSIONS.get(key, key)] = value
    entry.setdefault("enabled", True)
    if item.get("position") in (0, 1):
        entry["position"] = "before_char" if item["position"] == 0 else "after_char"
    entry["use_regex"] = False  # a key written /pattern/flags is one by its slashes
    return entry | {"extensions": extensions}


def _item(entry: Mapping[str, JsonValue], number: int) -> dict[str, JsonValue]:
    item: dict[str, JsonValue] = {"uid": number, "key": [], "keysecondary": [], "content": ""}
    for key, field in _FIELDS.items():
        if field in entry:
            item[key] = entry[field]
    item["disable"] = entry.get("enabled") is False
    extensions = entry.get("extensions")
    for key, value in (extensions if isinstance(extensions, dict) else {}).items():
        item[_NAMED.get(key, key)] = value
    if "position" not in item:
        item["position"] = 1 if entry.get("position") == "after_char" else 0
    return item
