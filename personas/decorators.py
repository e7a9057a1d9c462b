"""Decorators: the `@@name values` lines at the top of a lore entry (character-card-spec V3).

A line `@@@name` is a fallback: it counts when nothing above it in its chain is understood here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from backends.api import Role
from personas.persona import Place

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["Decorated", "parse"]

_LINE = re.compile(r"(@{2,})([A-Za-z_]\w*)(?:[ \t]+(.*))?")

# What follows counts in tokens of a text that is no chat, or needs a picture of the person. The
# specification says that such an application ignores them; then their fallback counts.
_NOT_IN_CHATS = frozenset(
    {
        "instruct_depth",
        "instruct_scan_depth",
        "is_user_icon",
        "reverse_depth",
        "reverse_instruct_depth",
    }
)
_POSITIONS = {
    "before_desc": Place.BEFORE_CHAR,
    "after_desc": Place.AFTER_DESCRIPTION,
    "personality": Place.PERSONALITY,
    "scenario": Place.SCENARIO,
}

Value = bool | int | str | tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Decorated:
    """An entry's text without its decorators, and what they say.

    `found` has the value of each decorator that counts, by its name: True, a number, a text (a
    `Place` or a `Role` where the decorator names one) or several texts. `ignored` are the names of
    those that mean nothing here, each once.
    """

    content: str
    found: Mapping[str, Value] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()


def parse(content: str) -> Decorated:
    """Splits an entry's content. Of two decorators of one name the first counts."""
    if not content.lstrip().startswith("@@"):
        return Decorated(content)
    found: dict[str, Value] = {}
    ignored: dict[str, None] = {}
    lines = content.splitlines()
    settled = True  # whether the chain at hand has a decorator that is understood
    at = 0
    while at < len(lines):
        line = lines[at].strip()
        match = _LINE.fullmatch(line)
        if line and match is None:
            break
        at += 1
        if match is None:
            continue
        name = match[2].lower()
        if len(match[1]) == 2:
            settled = False
        elif settled:
            continue
        value = _value(name, (match[3] or "").strip())
        if value is None:
            ignored[name] = None
            continue
        settled = True
        found.setdefault(name, value)
    return Decorated("\n".join(lines[at:]).strip("\n"), found, tuple(ignored))


def _value(name: str, text: str) -> Value | None:
    """The decorator's value; None when it is unknown, not for chats or not well-formed."""
    read = None if name in _NOT_IN_CHATS else _READERS.get(name)
    return None if read is None else read(text)


def _flag(text: str) -> bool | None:
    return True if text.lower() in ("", "true") else None


def _number(text: str) -> int | None:
    return int(text) if re.fullmatch(r"-?\d{1,9}", text) else None


def _count(text: str) -> int | None:
    number = _number(text)
    return number if number is not None and number >= 0 else None


def _positive(text: str) -> int | None:
    return _count(text) or None


def _texts(text: str) -> tuple[str, ...] | None:
    return tuple(part for part in (one.strip() for one in text.split(",")) if part) or None


def _role(text: str) -> Role | None:
    return Role(text.lower()) if text.lower() in ("assistant", "system", "user") else None


def _position(text: str) -> Place | None:
    return _POSITIONS.get(text.lower())


def _prompt(text: str) -> str | None:
    kind = text.lower()
    return kind if kind in ("post_history_instructions", "system_prompt") else None


_READERS: dict[str, Callable[[str], Value | None]] = {
    "activate": _flag,
    "activate_only_after": _count,
    "activate_only_every": _positive,
    "additional_keys": _texts,
    "depth": _number,
    "disable_ui_prompt": _prompt,
    "dont_activate": _flag,
    "dont_activate_after_match": _flag,
    "exclude_keys": _texts,
    "ignore_on_max_context": _flag,
    "is_greeting": _count,
    "keep_activate_after_match": _flag,
    "position": _position,
    "role": _role,
    "scan_depth": _count,
}
