"""Character cards as JSON: version 3, 2 (the same in a wrapper) and 1 (flat) in, version 3 out.

Reading is lenient: what can be understood is repaired, and `ImportReport` names each field that
was. Writing is strict, and keeps every key of the original. Sources: character-card-spec-v2
(`spec_v1.md`, `spec_v2.md`) and character-card-spec-v3 (`SPEC_V3.md`).
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import Counter
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from personas.jsontext import check_depth
from personas.lorebook_reading import read_lore, sound_book
from personas.persona import CardError, Persona

if TYPE_CHECKING:
    from collections.abc import Mapping

    from personas.persona import JsonValue

__all__ = ["CardLimits", "ImportReport", "Imported", "read_card", "write_card"]


@dataclass(frozen=True, slots=True)
class CardLimits:
    """What is refused before it is decoded: size in bytes, nesting of the JSON."""

    size: int = 16 << 20
    depth: int = 64


@dataclass(frozen=True, slots=True)
class ImportReport:
    """What became of a card's fields, as paths such as `data.tags`.

    Every key of the card (and of its `data`) is in exactly one of `executed` (it has an effect
    here), `preserved` (kept for an export, without effect yet) and `dropped` (its value made no
    sense; an export has an empty value there). `repaired` names those read as something else than
    was written, such as null for a text; it is no fourth group. Of lorebooks also longer paths are
    named, such as `data.character_book.entries.3.keys.0` for a pattern that cannot be executed.
    """

    executed: tuple[str, ...] = ()
    preserved: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    repaired: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Imported:
    """A persona and what its import made of the card."""

    persona: Persona
    report: ImportReport


# The card's key -> the persona's field.
_TEXTS: dict[str, str] = {
    "name": "name",
    "description": "description",
    "personality": "personality",
    "scenario": "scenario",
    "first_mes": "greeting",
    "mes_example": "examples",
    "system_prompt": "system_prompt",
    "post_history_instructions": "post_history_instructions",
    "nickname": "nickname",
    "creator": "creator",
    "creator_notes": "creator_notes",
    "character_version": "character_version",
}
_LISTS: dict[str, str] = {"tags": "tags", "alternate_greetings": "alternate_greetings"}
_V1 = frozenset({"name", "description", "personality", "scenario", "first_mes", "mes_example"})

# What a V3 card must have, whatever the card that was read had.
_REQUIRED_TEXTS = tuple(key for key in _TEXTS if key != "nickname")
_SHAPES: dict[str, type] = {"extensions": dict, "group_only_greetings": list}
_REQUIRED_LISTS = ("tags", "alternate_greetings", "group_only_greetings")

_NAME_CHARS = 80
_SURROGATE = re.compile("[\ud800-\udfff]")


def read_card(
    raw: bytes, *, id: str, avatar: str | None = None, limits: CardLimits | None = None
) -> Imported:
    """Reads a card of any version from JSON in UTF-8, UTF-16 or UTF-32.

    `id` and `avatar` are the persona's. Raises `CardError` with a code: `too_large`, `too_deep`,
    `bad_encoding`, `bad_json` (`where` is `line:column`), `not_a_card`.
    """
    card, notes = _decode(raw, limits or CardLimits())
    data, prefix = _data(card)
    for key in card:
        if not prefix:
            break
        (notes.executed if key in ("spec", "spec_version", "data") else notes.preserved).append(key)
    texts = dict.fromkeys(_TEXTS.values(), "")
    lists: dict[str, tuple[str, ...]] = dict.fromkeys(_LISTS.values(), ())
    for key, value in data.items():
        path = prefix + key
        if key in _TEXTS:
            text = _text(value)
            texts[_TEXTS[key]] = text or ""
            notes.add(path, dropped=text is None, repaired=text != value)
        elif key in _LISTS:
            items = _list(value, commas=key == "tags")
            lists[_LISTS[key]] = items or ()
            repaired = items is not None and list(items) != value
            notes.add(path, dropped=items is None, repaired=repaired)
        else:
            misshapen = not isinstance(value, _SHAPES.get(key, object))
            if key != "character_book" or value is None:
                notes.add(path, dropped=misshapen, preserved=key not in ("spec", "spec_version"))
    lore = read_lore(data, prefix)
    notes.executed += lore.executed
    notes.preserved += lore.preserved
    greeting, alternates = texts["greeting"], lists["alternate_greetings"]
    if not greeting.strip() and alternates:
        greeting, *rest = alternates
        alternates = tuple(rest)
        notes.repaired.append(f"{prefix}first_mes")
    name, nickname = _name(texts["name"]) or id, _name(texts["nickname"])
    if name != texts["name"]:
        notes.repaired.append(f"{prefix}name")
    if nickname != texts["nickname"]:
        notes.repaired.append(f"{prefix}nickname")
    persona = Persona(
        id=id,
        revision=_revision(card),
        name=name,
        description=texts["description"],
        personality=texts["personality"],
        scenario=texts["scenario"],
        greeting=greeting,
        alternate_greetings=alternates,
        examples=texts["examples"],
        system_prompt=texts["system_prompt"],
        post_history_instructions=texts["post_history_instructions"],
        nickname=nickname,
        creator=texts["creator"],
        creator_notes=texts["creator_notes"],
        character_version=texts["character_version"],
        tags=lists["tags"],
        avatar=avatar,
        lore=lore.books,
        depth_prompt=lore.depth_prompt,
        card=MappingProxyType(card),
    )
    return Imported(persona, notes.report())


def write_card(persona: Persona) -> bytes:
    """The persona as a V3 card in UTF-8 JSON.

    Keys of the original card stay where they were, known here or not; fields of the persona that
    were changed or repaired since are written over them, what the import dropped is empty, and what
    the V3 specification requires and the original lacks is added, in the lorebook too.
    """
    card: dict[str, JsonValue] = dict(persona.card)
    data, prefix = _data(card) if card else ({}, "data.")
    data = {key: value for key, value in data.items() if key not in ("spec", "spec_version")}
    for key, field in (_TEXTS | _LISTS).items():
        value: str | tuple[str, ...] = getattr(persona, field)
        if _reads_as(key, data.get(key), value):
            continue
        if value or key in data or key in _REQUIRED_TEXTS:
            data[key] = value if isinstance(value, str) else list(value)
    for key in _REQUIRED_LISTS:
        if not isinstance(data.get(key), list):
            data[key] = []
    if not isinstance(data.get("extensions"), dict):
        data["extensions"] = {}
    book = data.get("character_book")
    if book is None:
        data.pop("character_book", None)
    elif isinstance(book, dict) and isinstance(book.get("entries"), (list, dict)):
        data["character_book"] = sound_book(book)
    around = card if prefix else {}
    version = {"spec": "chara_card_v3", "spec_version": _version(card)}
    whole: dict[str, JsonValue] = {**around, **version, "data": data}
    return _dump(whole, indent=2) + b"\n"


class _Notes:
    """The report as it grows."""

    def __init__(self) -> None:
        self.executed: list[str] = []
        self.preserved: list[str] = []
        self.dropped: list[str] = []
        self.repaired: list[str] = []

    def add(
        self, path: str, *, dropped: bool = False, repaired: bool = False, preserved: bool = False
    ) -> None:
        if dropped:
            self.dropped.append(path)
            return
        (self.preserved if preserved else self.executed).append(path)
        if repaired:
            self.repaired.append(path)

    def report(self) -> ImportReport:
        repaired = tuple(dict.fromkeys(self.repaired))
        return ImportReport(
            tuple(self.executed), tuple(self.preserved), tuple(self.dropped), repaired
        )


def _decode(raw: bytes, limits: CardLimits) -> tuple[dict[str, JsonValue], _Notes]:
    if len(raw) > limits.size:
        raise CardError("too_large", f"the card has {len(raw)} bytes, more than {limits.size}")
    try:
        text = raw.decode(json.detect_encoding(raw))
    except UnicodeDecodeError as error:
        where = f"byte {error.start}"
        raise CardError("bad_encoding", f"no Unicode text at {where}", where=where) from None
    check_depth(text, limits.depth)
    notes = _Notes()
    endless = False

    def number(text: str) -> float:
        nonlocal endless
        value = float(text)
        endless = endless or not math.isfinite(value)
        return value

    def members(pairs: list[tuple[str, JsonValue]]) -> dict[str, JsonValue]:
        whole = dict(pairs)
        if len(whole) < len(pairs):  # the last one counts, as in most readers
            counts = Counter(key for key, _ in pairs)
            notes.repaired.extend(key for key, count in counts.items() if count > 1)
        return whole

    try:
        card: JsonValue = json.loads(
            text, object_pairs_hook=members, parse_float=number, parse_constant=number
        )
    except json.JSONDecodeError as error:
        where = f"{error.lineno}:{error.colno}"
        raise CardError("bad_json", f"{error.msg} at {where}", where=where) from None
    except (RecursionError, ValueError) as error:  # an integer of thousands of digits
        raise CardError("bad_json", f"the card cannot be read: {error}") from None
    if not isinstance(card, dict):
        raise CardError("not_a_card", "the card is no JSON object")
    if endless:
        _make_finite(card, "", notes)
    return card, notes


def _make_finite(node: dict[str, JsonValue] | list[JsonValue], path: str, notes: _Notes) -> None:
    """Puts null for NaN and the infinities, in place: JSON has no such numbers."""
    members = node.items() if isinstance(node, dict) else enumerate(node)
    for key, value in [*members]:
        if isinstance(value, (dict, list)):
            _make_finite(value, f"{path}{key}.", notes)
        elif isinstance(value, float) and not math.isfinite(value):
            notes.repaired.append(f"{path}{key}")
            if isinstance(node, dict):
                node[str(key)] = None
            else:
                node[int(key)] = None


def _data(card: dict[str, JsonValue]) -> tuple[dict[str, JsonValue], str]:
    """The object that holds the fields, and the prefix of their paths."""
    data = card.get("data")
    if isinstance(data, dict) and (data.keys() & _V1 or "spec" in card):
        return data, "data."
    if card.keys() & _V1:
        return card, ""
    raise CardError("not_a_card", "no field of a character card is in it", where="data")


def _text(value: JsonValue) -> str | None:
    """The value as text; None when it cannot be meant as one."""
    if value is None:
        return ""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, list) and all(isinstance(line, str) for line in value):
        value = "\n".join(str(line) for line in value)
    if not isinstance(value, str):
        return None
    return _SURROGATE.sub("�", value.replace("\0", ""))


def _list(value: JsonValue, *, commas: bool) -> tuple[str, ...] | None:
    """The value as a list of texts without empty ones; `commas`: one text may hold several."""
    if value is None:
        return ()
    if isinstance(value, str):
        items: list[JsonValue] = [*value.split(",")] if commas else [value]
    elif isinstance(value, list):
        items = value
    else:
        return None
    texts = [text for item in items if (text := _text(item))]
    if commas:
        texts = [text.strip() for text in texts]
    return tuple(text for text in texts if text.strip())


def _reads_as(key: str, written: JsonValue, value: str | tuple[str, ...]) -> bool:
    """Whether what a card has is well-formed and reads as the value: then it may stay."""
    if key in _LISTS:
        sound = isinstance(written, list) and all(isinstance(item, str) for item in written)
        return sound and _list(written, commas=key == "tags") == value
    if not isinstance(written, str):
        return False
    text = _text(written) or ""
    return value == (_name(text) if key in ("name", "nickname") else text)


def _name(text: str) -> str:
    """One line, of a length that a transcript can sign every reply with."""
    return " ".join(text.split())[:_NAME_CHARS].rstrip()


def _version(card: Mapping[str, JsonValue]) -> str:
    """The card's own version where it is 3 or more, else 3.0."""
    written = card.get("spec_version")
    if isinstance(written, str) and re.fullmatch(r"[3-9]\.\d{1,3}", written):
        return written
    return "3.0"


def _revision(card: Mapping[str, JsonValue]) -> str:
    canonical = json.dumps(dict(card), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def _dump(card: Mapping[str, JsonValue], indent: int | None = None) -> bytes:
    # A lone surrogate has no UTF-8; JSON's own escape is what backslashreplace writes for it.
    text = json.dumps(dict(card), ensure_ascii=False, indent=indent)
    return text.encode(errors="backslashreplace")
