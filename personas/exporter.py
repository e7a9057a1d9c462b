"""Characters out: V2 and V3 as JSON, PNG with both, CHARX.

A V2 file keeps the keys it does not know, as V2 readers ignore them; what its reader would take
for text, the decorators of lore, is left out, and `losses` says so.
"""

from __future__ import annotations

import base64
import json
import re
from typing import TYPE_CHECKING, Literal

from personas import charx, pictures, png
from personas.card import write_card
from personas.limits import Finding, Findings, ImportLimits

if TYPE_CHECKING:
    from collections.abc import Iterable

    from personas.charx import Asset
    from personas.persona import JsonValue, Persona

__all__ = ["losses", "to_charx", "to_json", "to_png"]

_V1 = ("name", "description", "personality", "scenario", "first_mes", "mes_example")
# Fields that V3 brought: a V2 file carries them, a reader of V2 does not know them.
_ONLY_V3 = (
    "assets",
    "nickname",
    "creator_notes_multilingual",
    "source",
    "group_only_greetings",
    "creation_date",
    "modification_date",
)
_DECORATORS = re.compile(r"\A(?:[ \t]*@@[^\n]*(?:\n|\Z)|[ \t]*\n(?=[ \t]*@@))+")


def to_json(persona: Persona, *, version: Literal[2, 3] = 3) -> bytes:
    """The card as UTF-8 JSON. Every key of the original is in it, `extensions` untouched; in V2
    entries of the lorebook are without decorators."""
    whole = write_card(persona)
    return whole if version == 3 else _dump(_v2(whole)[0], indent=2) + b"\n"


def losses(persona: Persona, *, version: Literal[2, 3] = 2) -> tuple[Finding, ...]:
    """What an export in this version cannot say, field by field; nothing for V3."""
    return () if version == 3 else _v2(write_card(persona))[1]


def to_png(persona: Persona, avatar: bytes | None = None, *, assets: Iterable[Asset] = ()) -> bytes:
    """A PNG with the card as V2 in `chara`, as V3 in `ccv3`, and the assets as RisuAI has them.

    `chara` has V1's six fields at its top as well, for readers older than V2.
    `avatar` is any picture that is read here, and is made anew unless it is a PNG; None gives a
    grey one. The card goes before the picture, where every reader looks. Raises `CardError`:
    `bad_picture`, `too_many_pixels`.
    """
    picture = png.blank() if avatar is None else _clean(avatar)
    v3 = write_card(persona)
    texts = [
        ("chara", base64.b64encode(_dump(_with_v1(_v2(v3)[0])))),
        ("ccv3", base64.b64encode(_dump(json.loads(v3)))),
    ]
    texts += [(f"chara-ext-asset_:{a.path}", base64.b64encode(a.data)) for a in assets]
    return png.with_texts(picture, texts)


def to_charx(persona: Persona, assets: Iterable[Asset] = ()) -> bytes:
    """A CHARX archive with the V3 card and its files. Raises `CardError`: `bad_asset`."""
    return charx.write_charx(write_card(persona), assets)


def _clean(avatar: bytes) -> bytes:
    if not avatar.startswith(png.SIGNATURE):
        return pictures.reencode(avatar)
    return png.bare_picture(png.read_chunks(avatar, ImportLimits(), Findings()))


def _v2(v3: bytes) -> tuple[dict[str, JsonValue], tuple[Finding, ...]]:
    """The card as V2, and what that leaves out."""
    card: dict[str, JsonValue] = json.loads(v3)
    data = card["data"]
    assert isinstance(data, dict)
    findings = Findings()
    for key in _ONLY_V3:
        if data.get(key):
            findings.add("only_v3", "readers of V2 ignore this field", where=f"data.{key}")
    book = data.get("character_book")
    entries = book.get("entries") if isinstance(book, dict) else None
    for number, entry in enumerate(entries if isinstance(entries, list) else []):
        content = entry.get("content") if isinstance(entry, dict) else None
        if not isinstance(entry, dict) or not isinstance(content, str):
            continue
        where = f"data.character_book.entries.{number}"
        if isinstance(entry.get("id"), str):
            del entry["id"]
            findings.add("only_v3", "V2 has numbers as ids", where=f"{where}.id")
        plain = _DECORATORS.sub("", content)
        if plain != content:
            entry["content"] = plain
            findings.add("decorators_dropped", "V2 has no decorators", where=f"{where}.content")
        if entry.get("use_regex") is True:
            findings.add("only_v3", "V2 has no patterns as keys", where=f"{where}.use_regex")
    version: dict[str, JsonValue] = {"spec": "chara_card_v2", "spec_version": "2.0"}
    return {**card, **version}, findings.done()


def _with_v1(card: dict[str, JsonValue]) -> dict[str, JsonValue]:
    data = card["data"]
    assert isinstance(data, dict)
    return {**{key: data[key] for key in _V1}, **card}


def _dump(card: dict[str, JsonValue], indent: int | None = None) -> bytes:
    # A lone surrogate has no UTF-8; JSON's own escape is what backslashreplace writes for it.
    return json.dumps(card, ensure_ascii=False, indent=indent).encode(errors="backslashreplace")
