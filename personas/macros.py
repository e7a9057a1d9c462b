"""Macros of character cards: `{{char}}`, `{{user}}`, comments and choices frozen per chat.

Rules of character-card-spec V1 and V3. A text is read once, from left to right, inner macros before
outer ones; what a macro stands for is not searched for macros.
"""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["expand"]

_TOKEN = re.compile(r"\{{2,}|\}\}|<BOT>|<USER>", re.IGNORECASE)
_CHOICE = re.compile(r"(random|pick|roll)\s*(?::|\s)\s*(.*)", re.IGNORECASE | re.DOTALL)
_COMMA = re.compile(r"(?<!\\),")
_DICE = re.compile(r"(?:(\d{0,2})d)?(\d{1,9})", re.IGNORECASE)
_OLD = {"<bot>": "char", "<user>": "user"}

# Macros inside macros deeper than this stay text; it also bounds how often a text is copied.
_DEPTH = 8


def expand(text: str, values: Mapping[str, str], *, seed: str) -> str:
    """The text with its macros replaced; unknown and unclosed ones stay as they are.

    `values` are the macros that stand for a text, by lower-case name; `<BOT>` and `<USER>` are
    `char` and `user`. `{{// …}}` is removed. `{{random:a,b}}`, `{{pick:a,b}}` and `{{roll:d6}}`
    depend on `seed`, the text and their place in it, and on nothing else: with the conversation's
    id as the seed they are frozen per chat, in every process. Linear in the length of the text.
    """
    if "{{" not in text and "<" not in text:
        return text
    draw = _Draw(seed, text)
    open_: list[tuple[int, list[str]]] = []  # offset of each open `{{`, and the text before it
    pieces: list[str] = []
    done = 0
    for token in _TOKEN.finditer(text):
        pieces.append(text[done : token.start()])
        done = token.end()
        mark = token[0].lower()
        if mark[0] == "{":
            count = min(len(mark) // 2, _DEPTH - len(open_))
            start = token.end() - 2 * count  # of an odd number of braces the first is text
            pieces.append(text[token.start() : start])
            for at in range(start, token.end(), 2):
                open_.append((at, pieces))
                pieces = []
        elif mark == "}}" and open_:
            inner = "".join(pieces)
            at, pieces = open_.pop()
            found = _value(inner, values, draw, at)
            pieces.append("{{" + inner + "}}" if found is None else found)
        else:
            pieces.append(values.get(_OLD.get(mark, ""), token[0]))
    pieces.append(text[done:])
    while open_:
        _, before = open_.pop()
        pieces = [*before, "{{", *pieces]
    return "".join(pieces)


class _Draw:
    """Numbers that depend on the seed, the text and the place in it alone."""

    def __init__(self, seed: str, text: str) -> None:
        self._seed = seed
        self._text = text
        self._key: bytes | None = None

    def below(self, count: int, at: int, again: int = 0) -> int:
        if self._key is None:
            source = f"{self._seed}\0{self._text}".encode(errors="surrogatepass")
            self._key = hashlib.sha256(source).digest()
        drawn = hashlib.sha256(self._key + f"{at}.{again}".encode()).digest()
        return int.from_bytes(drawn[:8], "big") % count


def _value(inner: str, values: Mapping[str, str], draw: _Draw, at: int) -> str | None:
    """What the macro stands for; None when it is unknown."""
    inner = inner.strip()
    if inner.startswith("//"):
        return ""
    known = values.get(inner.lower())
    if known is not None:
        return known
    choice = _CHOICE.fullmatch(inner)
    if choice is None:
        return None
    argument = choice[2]
    if choice[1].lower() == "roll":
        return _roll(argument, draw, at)
    if argument.startswith(":"):  # {{random::a::b}}
        options = argument[1:].split("::")
    else:
        options = [part.replace("\\,", ",") for part in _COMMA.split(argument)]
    return options[draw.below(len(options), at)].strip()


def _roll(dice: str, draw: _Draw, at: int) -> str | None:
    """The sum of `6`, `d6` or `2d6`."""
    match = _DICE.fullmatch(dice.strip())
    if match is None or int(match[2]) == 0:
        return None
    count = int(match[1] or 1)
    return str(sum(1 + draw.below(int(match[2]), at, again) for again in range(count)))
