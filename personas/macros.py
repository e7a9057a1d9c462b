"""Macros of character cards: V1's, V3's and the common ones of SillyTavern.

A text is read once into a tree and evaluated from left to right, inner macros before outer ones;
what a macro stands for is not searched for macros. Nothing outside the chat can be read: values,
variables and the clock are what the caller gives.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from personas.macro_clock import NEUTRAL, clock

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, MutableMapping, Sequence
    from datetime import datetime

__all__ = ["draws", "expand", "tells_time"]

_TOKEN = re.compile(r"\{{2,}|\}\}|<(?:BOT|CHAR|USER|GROUP)>", re.IGNORECASE)
_CALL = re.compile(r"([a-z_]\w*)(?:\s*(::?)\s*|\s+)(.*)", re.IGNORECASE | re.DOTALL)
_IF = re.compile(r"if\b\s*(?:::?)?", re.IGNORECASE)
_COMMA = re.compile(r"(?<!\\),")
_DICE = re.compile(r"(?:(\d{0,2})d)?(\d{1,9}|%)\s*([+-]\s*\d{1,9})?", re.IGNORECASE)
_DRAWS = re.compile(r"\{\{[^{}]*\b(?:random|pick|roll)\b", re.IGNORECASE)
_TELLS = re.compile(
    r"\{\{\s*(?:time|date|weekday|isotime|isodate|datetimeformat|time_utc)\b|\{\{\s*time_utc",
    re.IGNORECASE,
)
_SAME = {
    "<bot>": "char",
    "<char>": "char",
    "<group>": "char",
    "<user>": "user",
    "charifnotgroup": "char",
    "group": "char",
    "groupnotmuted": "char",
    "char_version": "charversion",
}
_FALSE = frozenset({"", "0", "false", "off", "no"})

# Macros inside macros deeper than this stay text; it also bounds how often a text is copied.
_DEPTH = 8
# Characters that the macros of one text may add to it; one that would add more stays text.
_ROOM = 1 << 18
_VARIABLE_CHARS = 1 << 14
_VARIABLES = 256


class _Macro(NamedTuple):
    """A macro's place in its text, and what stands between its braces."""

    at: int
    inside: list[_Node]


_Node = str | _Macro


def expand(
    text: str,
    values: Mapping[str, str],
    *,
    seed: str | None,
    variables: MutableMapping[str, str] | None = None,
    now: datetime | None = None,
    scan: bool = False,
) -> str:
    """The text with its macros replaced; unknown and unclosed ones stay as they are.

    `values` are the macros that stand for a text, by lower-case name; `<BOT>` and `<USER>` are
    `char` and `user`. `{{random:a,b}}`, `{{pick:a,b}}` and `{{roll:2d6+1}}` depend on `seed`, the
    text and their place in it, and on nothing else: with the conversation's id as the seed they are
    frozen per chat, in every process; without a seed they are "…". `variables` are read and written
    by `{{setvar::a::b}}` and its kin. Clocks tell `now`; without it they become words that are
    always true, such as "the present time". With `scan` the text is for finding lore:
    `{{hidden_key:x}}` is x.

    Linear in the length of the text; adds at most 256 Ki characters to it.
    """
    if "{{" not in text and "<" not in text:
        return text
    return _Expansion(text, values, seed, variables, now, scan).run()


def draws(text: str) -> bool:
    """Whether the text may have a macro whose value differs between chats."""
    return _DRAWS.search(text) is not None


def tells_time(text: str) -> bool:
    """Whether the text may have a macro that stands for the time."""
    return _TELLS.search(text) is not None


def _parse(text: str, values: Mapping[str, str]) -> list[_Node]:
    open_: list[tuple[int, list[_Node]]] = []  # offset of each open `{{`, and what is before it
    nodes: list[_Node] = []
    done = 0
    for token in _TOKEN.finditer(text):
        nodes.append(text[done : token.start()])
        done = token.end()
        mark = token[0].lower()
        if mark[0] == "{":
            count = min(len(mark) // 2, _DEPTH - len(open_))
            start = token.end() - 2 * count  # of an odd number of braces the first is text
            nodes.append(text[token.start() : start])
            for at in range(start, token.end(), 2):
                open_.append((at, nodes))
                nodes = []
        elif mark == "}}" and open_:
            at, before = open_.pop()
            before.append(_Macro(at, nodes))
            nodes = before
        else:
            nodes.append(values.get(_SAME.get(mark, ""), token[0]))
    nodes.append(text[done:])
    while open_:
        _, before = open_.pop()
        nodes = [*before, "{{", *nodes]
    return nodes


class _Output:
    """Text as it grows; `trim` takes the line breaks around its place away."""

    def __init__(self) -> None:
        self._pieces: list[str] = []
        self._trimming = False

    def add(self, piece: str) -> None:
        if self._trimming:
            piece = piece.lstrip("\r\n")
            self._trimming = not piece
        if piece:
            self._pieces.append(piece)

    def trim(self) -> None:
        while self._pieces:
            last = self._pieces.pop().rstrip("\r\n")
            if last:
                self._pieces.append(last)
                break
        self._trimming = True

    def text(self) -> str:
        return "".join(self._pieces)


@dataclass(slots=True)
class _Expansion:
    """One text's evaluation."""

    text: str
    values: Mapping[str, str]
    seed: str | None
    variables: MutableMapping[str, str] | None
    now: datetime | None
    scan: bool
    room: int = _ROOM
    key: bytes | None = None

    def run(self) -> str:
        return self._evaluate(_parse(self.text, self.values))

    def _evaluate(self, nodes: Sequence[_Node], depth: int = _DEPTH) -> str:
        """Blocks inside blocks deeper than `depth` stay text."""
        blocks = _blocks(nodes) if depth else {}
        out = _Output()
        at = 0
        while at < len(nodes):
            node = nodes[at]
            if isinstance(node, str):
                out.add(node)
            elif at in blocks:
                otherwise, end = blocks[at]
                if self._holds(node):
                    taken = nodes[at + 1 : end if otherwise is None else otherwise]
                else:
                    taken = () if otherwise is None else nodes[otherwise + 1 : end]
                out.add(self._evaluate(taken, depth - 1).strip())
                at = end
            else:
                self._add(node, out)
            at += 1
        return out.text()

    def _add(self, macro: _Macro, out: _Output) -> None:
        if _word(macro).startswith("//"):
            return
        inner = self._evaluate(macro.inside)
        if inner.strip().lower() == "trim":
            out.trim()
            return
        value = self._value(inner.strip(), macro.at)
        if value is None or len(value) > self.room:
            out.add("{{" + inner + "}}")
        else:
            self.room -= len(value)
            out.add(value)

    def _holds(self, macro: _Macro) -> bool:
        condition = _IF.sub("", self._evaluate(macro.inside).strip(), count=1).strip()
        wanted = not condition.startswith("!")
        condition = condition.lstrip("!").strip()
        condition = self.values.get(condition.lower(), condition)
        return (condition.strip().lower() not in _FALSE) is wanted

    def _value(self, inner: str, at: int) -> str | None:
        """What the macro stands for; None when it is unknown."""
        name = inner.lower()
        known = self.values.get(_SAME.get(name, name))
        if known is not None:
            return known
        if name in _PLAIN:
            return _PLAIN[name]
        told = clock(inner, self.now)
        if told is not None:
            return told
        neutral = NEUTRAL.get(name)
        if neutral is not None:
            return neutral.format(user=self.values.get("user", "the user"))
        call = _CALL.fullmatch(inner)
        if call is None:
            return None
        function = _FUNCTIONS.get(call[1].lower())
        return None if function is None else function(self, call[3], at, call[2] == "::")

    def below(self, count: int, at: int, again: int = 0) -> int:
        """A number that depends on the seed, the text and the place in it alone."""
        if self.key is None:
            source = f"{self.seed}\0{self.text}".encode(errors="surrogatepass")
            self.key = hashlib.sha256(source).digest()
        drawn = hashlib.sha256(self.key + f"{at}.{again}".encode()).digest()
        return int.from_bytes(drawn[:8], "big") % count

    def choice(self, argument: str, at: int, doubled: bool) -> str:
        """One of several texts, separated by commas or `::`."""
        if doubled and "::" in argument:
            options = argument.split("::")
        else:
            options = [part.replace("\\,", ",") for part in _COMMA.split(argument)]
        return "…" if self.seed is None else options[self.below(len(options), at)].strip()

    def roll(self, argument: str, at: int, doubled: bool) -> str | None:
        """The sum of `6`, `d6`, `2d6` or `2d6+1`."""
        match = _DICE.fullmatch(argument.strip())
        sides = 100 if match is not None and match[2] == "%" else int(match[2]) if match else 0
        if match is None or sides == 0:
            return None
        count = int(match[1] or 1)
        self.room -= 16 * count  # dice are work too
        if self.room < 0:
            return None
        if self.seed is None:
            return "…"
        added = int("".join((match[3] or "0").split()))
        return str(added + sum(1 + self.below(sides, at, again) for again in range(count)))

    def hidden(self, argument: str, at: int, doubled: bool) -> str:
        """Nothing, except where lore is looked for."""
        return argument if self.scan else ""

    def set(self, argument: str, at: int, doubled: bool) -> str | None:
        """Gives a variable a value."""
        name, found, value = argument.partition("::")
        return self._store(name, value, "") if found else None

    def add(self, argument: str, at: int, doubled: bool) -> str | None:
        """Adds to a variable: a number to a number, else a text to a text."""
        name, found, value = argument.partition("::")
        if not found:
            return None
        old = self._load(name)
        one, two = _number(old or "0"), _number(value)
        total = old + value if one is None or two is None else f"{one + two:.12g}"
        return self._store(name, total, "")

    def count(self, argument: str, step: int) -> str | None:
        """One more or less, and says the new number."""
        number = f"{(_number(self._load(argument) or '0') or 0) + step:.12g}"
        return self._store(argument, number, number)

    def get(self, argument: str, at: int, doubled: bool) -> str:
        """What a variable holds; nothing when nobody gave it a value."""
        return self._load(argument)

    def _load(self, name: str) -> str:
        return (self.variables or {}).get(name.strip(), "")

    def _store(self, name: str, value: str, said: str) -> str | None:
        if self.variables is None:
            self.variables = {}
        name = name.strip()
        full = name not in self.variables and len(self.variables) >= _VARIABLES
        if full or len(name) + len(value) > _VARIABLE_CHARS:
            return None
        self.variables[name] = value
        return said


def _word(macro: _Macro) -> str:
    """The beginning of what stands between a macro's braces, if that is text."""
    first = next((node for node in macro.inside if node), "")
    return first.strip().lower() if isinstance(first, str) else ""


def _blocks(nodes: Sequence[_Node]) -> dict[int, tuple[int | None, int]]:
    """For each `{{if …}}` that is closed: where its `{{else}}` stands, if any, and its end."""
    blocks: dict[int, tuple[int | None, int]] = {}
    open_: list[list[int]] = []
    for at, node in enumerate(nodes):
        if isinstance(node, str):
            continue
        word = _word(node)
        if _IF.match(word):
            open_.append([at])
        elif word == "else" and open_ and len(open_[-1]) == 1:
            open_[-1].append(at)
        elif word == "/if" and open_:
            found = open_.pop()
            blocks[found[0]] = (found[1] if len(found) > 1 else None, at)
    return blocks


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if abs(number) < 1e15 else None


# Macros that stand for the same text everywhere. Creator's notes never enter a prompt.
_PLAIN = {"newline": "\n", "space": " ", "noop": "", "banned": "", "creatornotes": ""}


def _nothing(state: _Expansion, argument: str, at: int, doubled: bool) -> str:
    return ""


def _repeat(text: str) -> Callable[[_Expansion, str, int, bool], str | None]:
    def repeated(state: _Expansion, argument: str, at: int, doubled: bool) -> str | None:
        return text * int(argument) if re.fullmatch(r"\d{1,3}", argument.strip()) else None

    return repeated


_FUNCTIONS: dict[str, Callable[[_Expansion, str, int, bool], str | None]] = {
    "random": _Expansion.choice,
    "pick": _Expansion.choice,
    "roll": _Expansion.roll,
    "reverse": lambda state, argument, at, doubled: argument[::-1],
    "comment": _nothing,
    "banned": _nothing,
    "outlet": _nothing,  # one that nothing was put into
    "hidden_key": _Expansion.hidden,
    "newline": _repeat("\n"),
    "space": _repeat(" "),
    "setvar": _Expansion.set,
    "setglobalvar": _Expansion.set,
    "addvar": _Expansion.add,
    "addglobalvar": _Expansion.add,
    "incvar": lambda state, argument, at, doubled: state.count(argument, 1),
    "incglobalvar": lambda state, argument, at, doubled: state.count(argument, 1),
    "decvar": lambda state, argument, at, doubled: state.count(argument, -1),
    "decglobalvar": lambda state, argument, at, doubled: state.count(argument, -1),
    "getvar": _Expansion.get,
    "getglobalvar": _Expansion.get,
}
