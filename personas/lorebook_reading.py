"""A card's books as they are executed: V2, V3, and what SillyTavern keeps in `extensions`.

Lenient: what can be understood is, whatever its type. The card itself stays as it was; what is read
here and has no effect is named, so that an import can say so.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from backends.api import Role
from personas import decorators
from personas.lorebook_keys import Key, KeyIndex
from personas.persona import KeyLogic, Lorebook, LoreEntry, Note, Place

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from personas.persona import JsonValue

__all__ = ["ReadLore", "read_lore", "sound_book"]

T = TypeVar("T")

_ROLES = (Role.SYSTEM, Role.USER, Role.ASSISTANT)
_LOGICS = (KeyLogic.AND_ANY, KeyLogic.NOT_ALL, KeyLogic.NOT_ANY, KeyLogic.AND_ALL)
_PLACES: dict[JsonValue, Place] = {
    0: Place.BEFORE_CHAR,
    "before_char": Place.BEFORE_CHAR,
    1: Place.AFTER_CHAR,
    "after_char": Place.AFTER_CHAR,
    2: Place.DEPTH,  # around the author's note, which stands four messages before the end
    3: Place.DEPTH,
    4: Place.DEPTH,
    "in_chat": Place.DEPTH,
    "at_depth": Place.DEPTH,
    5: Place.EXAMPLES,
    6: Place.EXAMPLES,
    7: Place.OUTLET,
}
# What V3 has names for, and what only SillyTavern's numbers say.
_NAMED = {Place.BEFORE_CHAR: "before_char", Place.AFTER_CHAR: "after_char"}
_NUMBERED = {Place.DEPTH: 4, Place.EXAMPLES: 5, Place.OUTLET: 7}
_OPTIONAL = frozenset(
    (
        *("name", "description", "scan_depth", "token_budget", "recursive_scanning", "priority"),
        *("id", "comment", "selective", "secondary_keys", "constant", "position"),
        "case_sensitive",
    )
)
_SOURCES = {
    "match_persona_description": "user",
    "match_character_description": "description",
    "match_character_personality": "personality",
    "match_character_depth_prompt": "depth_prompt",
    "match_scenario": "scenario",
    "match_creator_notes": "creator_notes",
}
# Knobs of SillyTavern without effect here, when they are set.
_WITHOUT_EFFECT = ("vectorized", "automation_id", "triggers", "characterFilter", "character_filter")
_SURROGATE = re.compile("[\ud800-\udfff]")
_MOST = 10**9  # of any number
_MANY = 100  # paths that one report names


@dataclass(slots=True)
class ReadLore:
    """The books, the depth prompt, and the paths of what has an effect and what has none."""

    books: tuple[Lorebook, ...] = ()
    depth_prompt: Note | None = None
    executed: list[str] = field(default_factory=list)
    preserved: list[str] = field(default_factory=list)
    patterns: list[tuple[str, Key]] = field(default_factory=list)
    """Each key that is a pattern, with its path."""

    def keep(self, path: str) -> None:
        """Notes that something has no effect."""
        if len(self.preserved) < _MANY:
            self.preserved.append(path)


def read_lore(data: Mapping[str, JsonValue], prefix: str = "") -> ReadLore:
    """Reads `character_book`, and of the extensions `additional_lorebooks` and `depth_prompt`.

    `data` is the object that has the card's fields, `prefix` the start of their paths.
    """
    read = ReadLore()
    books: list[Lorebook] = []
    for path, value in _found(data, prefix):
        if not isinstance(value, dict) or not isinstance(value.get("entries"), (list, dict)):
            read.keep(path)
            continue
        read.executed.append(path)
        books.append(_book(value, path, len(books), read))
    read.books = tuple(books)
    for number in KeyIndex(key for _, key in read.patterns).broken:
        read.keep(read.patterns[number][0])
    note = _map(data.get("extensions")).get("depth_prompt")
    text = _map(note).get("prompt")
    if isinstance(text, str) and text.strip():
        depth = _count(_map(note).get("depth"), 4)
        read.depth_prompt = Note(text, depth, _role(_map(note).get("role")))
        read.executed.append(f"{prefix}extensions.depth_prompt")
    return read


def sound_book(book: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    """The book with every field that V3 knows in V3's type: it reads as before, and strict readers
    take it. Other keys, and fields that are sound, stay as they are."""
    listed = book.get("entries")
    items = [*listed.values()] if isinstance(listed, dict) else listed
    entries = items if isinstance(items, list) else []
    sound: dict[str, JsonValue] = {
        **_without_nulls(book),
        "extensions": dict(_map(book.get("extensions"))),
        "entries": [_sound_entry(each) if isinstance(each, dict) else each for each in entries],
    }
    for key in ("scan_depth", "token_budget"):
        if isinstance(sound.get(key), (str, bool)):
            sound[key] = _count(sound[key], Lorebook().scan_depth if key == "scan_depth" else 0)
    if "recursive_scanning" in sound:
        sound["recursive_scanning"] = _flag(sound["recursive_scanning"], False)
    return sound


def _without_nulls(item: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    """Without those fields of V3 that may be absent and are null."""
    return {key: value for key, value in item.items() if value is not None or key not in _OPTIONAL}


def _sound_entry(item: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    regex = _flag(item.get("use_regex"), False)
    more = dict(_map(item.get("extensions")))
    entry: dict[str, JsonValue] = {**_without_nulls(item), "extensions": more, "use_regex": regex}
    for key, other in (("keys", "key"), ("secondary_keys", "keysecondary")):
        written = item.get(key, item.get(other))
        sound = isinstance(written, list) and all(isinstance(each, str) for each in written)
        if key in item or key == "keys" or written is not None:
            entry[key] = written if sound else [*_keys(written, regex)]
    if not isinstance(entry.get("content"), str):
        entry["content"] = ""
    entry["enabled"] = _flag(item.get("enabled"), True)
    for key in ("constant", "selective", "case_sensitive"):
        if key in entry:
            entry[key] = _flag(entry[key], False)
    for key, default in (("insertion_order", LoreEntry(id="").order), ("priority", 0)):
        value = entry.get(key)
        if key == "insertion_order" or value is not None:
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            entry[key] = value if number else _signed(value, default)
    if entry.get("position") not in (None, "before_char", "after_char"):
        place = _place(item, more)
        del entry["position"]
        if place in _NAMED and more.get("position") is None:
            entry["position"] = _NAMED[place]
        elif more.get("position") is None:
            more["position"] = _NUMBERED[place]
    return entry


def _found(data: Mapping[str, JsonValue], prefix: str) -> Iterator[tuple[str, JsonValue]]:
    if data.get("character_book") is not None:
        yield f"{prefix}character_book", data["character_book"]
    more = _map(data.get("extensions")).get("additional_lorebooks")
    for number, book in enumerate(more if isinstance(more, list) else ()):
        yield f"{prefix}extensions.additional_lorebooks.{number}", book


def _book(book: Mapping[str, JsonValue], path: str, number: int, read: ReadLore) -> Lorebook:
    listed = book["entries"]
    items = listed.values() if isinstance(listed, dict) else listed
    assert not isinstance(items, (str, int, float, type(None)))
    entries = []
    for at, item in enumerate(items):
        where = f"{path}.entries.{at}"
        if isinstance(item, dict):
            entries.append(_entry(item, f"{number}.{at}", where, read))
        else:
            read.keep(where)
    budget = _count(book.get("token_budget"), 0)
    return Lorebook(
        name=_text(book.get("name")),
        entries=tuple(entries),
        scan_depth=_count(book.get("scan_depth"), Lorebook().scan_depth),
        token_budget=budget or None,
        recursive=_flag(book.get("recursive_scanning"), False),
    )


def _entry(item: Mapping[str, JsonValue], id: str, path: str, read: ReadLore) -> LoreEntry:
    more = _map(item.get("extensions"))
    regex = _flag(item.get("use_regex"), False)
    keys = _keys(item.get("keys", item.get("key")), regex)
    secondary = _keys(item.get("secondary_keys", item.get("keysecondary")), regex)
    decorated = decorators.parse(_text(item.get("content")))
    said = decorated.found
    greeting, depth = said.get("is_greeting"), said.get("depth", more.get("depth"))
    scan = said.get("scan_depth", _first(more, item, "scan_depth"))
    place = _place(item, more)
    if "depth" in said:
        place = Place.DEPTH
    position, role = said.get("position"), said.get("role")
    outlet = _text(more.get("outlet_name"))
    use_chance = _flag(more.get("useProbability"), True)
    entry = LoreEntry(
        id=id,
        name=_text(item.get("name")) or _text(item.get("comment")) or next(iter(keys), ""),
        content=decorated.content,
        keys=keys,
        secondary_keys=secondary if _flag(item.get("selective"), False) and not regex else (),
        logic=_at(_LOGICS, more.get("selectiveLogic"), KeyLogic.AND_ANY),
        additional_keys=_said(said.get("additional_keys")),
        exclude_keys=() if regex else _said(said.get("exclude_keys")),
        regex=regex,
        case_sensitive=_flag(_first(item, more, "case_sensitive"), False),
        whole_words=_flag(more.get("match_whole_words"), False),
        scan_depth=None if _number(scan) is None else _count(scan, 0),
        sources=tuple(name for key, name in _SOURCES.items() if _flag(more.get(key), False)),
        enabled=_flag(item.get("enabled"), True),
        constant=_flag(item.get("constant"), False) and not regex,
        forced="activate" in said,
        barred="dont_activate" in said,
        probability=_bounded(more.get("probability"), 100.0) if use_chance else 100.0,
        groups=tuple(filter(None, map(str.strip, _text(more.get("group")).split(",")))),
        group_weight=_count(more.get("group_weight"), 100),
        group_override=_flag(more.get("group_override"), False),
        group_scoring=_flag(more.get("use_group_scoring"), False),
        sticky=_count(more.get("sticky"), 0),
        cooldown=_count(more.get("cooldown"), 0),
        delay=_count(more.get("delay"), 0),
        after_replies=_count(said.get("activate_only_after"), 0),
        every_replies=max(1, _count(said.get("activate_only_every"), 1)),
        once="dont_activate_after_match" in said,
        keep="keep_activate_after_match" in said,
        greeting=greeting if isinstance(greeting, int) else None,
        exclude_recursion=_flag(more.get("exclude_recursion"), False),
        prevent_recursion=_flag(more.get("prevent_recursion"), False),
        delay_recursion=_count(more.get("delay_until_recursion"), 0),
        order=_signed(item.get("insertion_order"), LoreEntry(id="").order),
        priority=_signed(item.get("priority"), 0),
        spare_on_limit="ignore_on_max_context" in said,
        ignore_budget=_flag(more.get("ignore_budget"), False),
        place=position if isinstance(position, Place) else place,
        depth=_count(depth, 4),
        role=role if isinstance(role, Role) else _role(more.get("role")),
        outlet=outlet,
        disables_system_prompt=said.get("disable_ui_prompt") == "system_prompt",
    )
    _remark(entry, decorated.ignored, more, path, read)
    return entry


def _remark(
    entry: LoreEntry,
    ignored: tuple[str, ...],
    more: Mapping[str, JsonValue],
    path: str,
    read: ReadLore,
) -> None:
    """Names what of the entry has no effect."""
    for name in ignored:
        read.keep(f"{path}.content.@@{name}")
    for name in _WITHOUT_EFFECT:
        if more.get(name):
            read.keep(f"{path}.extensions.{name}")
    for name, keys in (("keys", entry.keys), ("secondary_keys", entry.secondary_keys)):
        for number, text in enumerate(keys):
            if not entry.regex and text[0] != "/":
                continue
            key = Key(text, entry.regex, entry.case_sensitive)
            if key.is_pattern:
                read.patterns.append((f"{path}.{name}.{number}", key))


def _place(item: Mapping[str, JsonValue], more: Mapping[str, JsonValue]) -> Place:
    for value in (more.get("position"), item.get("position")):
        number = _number(value)
        found = _PLACES.get(int(number) if number is not None else value) if _plain(value) else None
        if found is not None:
            return found
    return Place.BEFORE_CHAR


def _first(one: Mapping[str, JsonValue], other: Mapping[str, JsonValue], key: str) -> JsonValue:
    """What one map says, or the other where that says nothing."""
    value = one.get(key)
    return other.get(key) if value is None else value


def _plain(value: JsonValue) -> bool:
    return isinstance(value, (str, int, float)) and not isinstance(value, bool)


def _map(value: JsonValue) -> Mapping[str, JsonValue]:
    return value if isinstance(value, dict) else {}


def _text(value: JsonValue) -> str:
    if not isinstance(value, str):
        return ""
    sound = value if value.isascii() else _SURROGATE.sub("\ufffd", value)
    return sound.replace("\0", "")


def _number(value: object) -> float | None:
    """A number, also one that is written as a text; None when it is none."""
    if value is None:  # most knobs of most entries
        return None
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return float(max(-_MOST, min(value, _MOST)))  # an integer may be too large for a float


def _count(value: object, default: int) -> int:
    if value is None:
        return default
    if isinstance(value, int):  # truth values too
        return max(0, min(value, _MOST))
    number = _number(value)
    return default if number is None else max(0, int(number))


def _signed(value: JsonValue, default: int) -> int:
    number = _number(value)
    return default if number is None else int(number)


def _bounded(value: JsonValue, default: float) -> float:
    number = _number(value)
    return default if number is None else max(0.0, min(number, 100.0))


def _flag(value: JsonValue, default: bool) -> bool:
    if value is None:
        return default
    if isinstance(value, str):
        return {"true": True, "1": True, "false": False, "0": False}.get(value.lower(), default)
    return bool(value) if isinstance(value, (bool, int)) else default


def _role(value: JsonValue) -> Role:
    if isinstance(value, str) and value.lower() in ("system", "user", "assistant"):
        return Role(value.lower())
    return _at(_ROLES, value, Role.SYSTEM)


def _at(values: tuple[T, ...], number: JsonValue, default: T) -> T:
    at = _number(number)
    return values[int(at)] if at is not None and 0 <= at < len(values) else default


def _keys(value: JsonValue, regex: bool) -> tuple[str, ...]:
    """Keys as a list or as one text with commas; a pattern may have commas of its own."""
    if isinstance(value, str):
        items: list[JsonValue] = [value] if regex or value.startswith("/") else [*value.split(",")]
    else:
        items = value if isinstance(value, list) else []
    texts = (_text(str(item)).strip() for item in items if _plain(item))
    return tuple(dict.fromkeys(text for text in texts if text))


def _said(value: object) -> tuple[str, ...]:
    return value if isinstance(value, tuple) else ()
