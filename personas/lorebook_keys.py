"""Which of a book's keys a text has: thousands of keys, one look at the text.

A plain key is looked for only where its first letters stand: the text's runs of three letters are
compared with those that keys begin with, as sets. Patterns run on RE2, in time linear in the text.
"""

from __future__ import annotations

import re
from collections import OrderedDict, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol, cast

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

__all__ = ["Key", "KeyIndex", "PatternError", "compile_pattern"]

_WRITTEN = re.compile(r"/(.+)/([a-z]*)", re.DOTALL)
# JavaScript writes \u00e9 where RE2 writes \x{00e9}.
_ESCAPE = re.compile(r"\\u\{?([0-9a-fA-F]{4,6})\}?")
_ESCAPED = r"\\x{\1}"
# Scripts that write words without spaces between them: there a word has no edge to look at.
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\ua4cf\uac00-\ud7ff\uf900-\ufaff\uff66-\uff9f]"
)
_EDGE = 3
# RE2 refuses a pattern whose program is larger; compiling takes time in the square of that.
_PATTERN_BYTES = 1 << 17
_GROUP_BYTES = 1 << 21
_PATTERN_CHARS = 1 << 13
# Patterns looked for together: so many at most, with so many instructions.
_TOGETHER = 32
_TOGETHER_SIZE = 2_000
# Of one book. A usual pattern has 10 to 50 instructions; the time for one character of a text is at
# worst in proportion to all of them.
_MOST_PATTERNS = 1024
_MOST_INSTRUCTIONS = 1 << 15
_REFUSED = 10  # instructions that a character of a refused pattern counts as
_REMEMBERED = 2048


class PatternError(ValueError):
    """A pattern that RE2 cannot run, and why."""


class Pattern(Protocol):
    """What we use of a compiled RE2 pattern."""

    @property
    def programsize(self) -> int:
        """Its instructions."""
        ...

    def search(self, text: bytes) -> object | None:
        """The first match, or None."""
        ...


class Key(NamedTuple):
    """One key as it is looked for; equal keys of several entries are looked for once."""

    text: str
    regex: bool = False
    case_sensitive: bool = False
    whole_words: bool = False

    @property
    def is_pattern(self) -> bool:
        """Whether it runs on RE2: said so, or written `/pattern/flags`."""
        return self.regex or _WRITTEN.fullmatch(self.text) is not None


def compile_pattern(key: Key) -> Pattern:
    """The key as an RE2 pattern over UTF-8. Raises `PatternError`.

    Of JavaScript's flags `i`, `m` and `s` count, `g`, `u` and `y` change nothing that is asked
    here. Look-around and back references are not regular: RE2 has none.
    """
    if len(key.text) > _PATTERN_CHARS:
        raise PatternError(f"more than {_PATTERN_CHARS} characters")
    flags, source = _read(key)
    return _compile(f"(?{flags}){source}" if flags else source, _PATTERN_BYTES)


def _read(key: Key) -> tuple[str, str]:
    """The pattern's flags, those that RE2 knows, and its text. Raises `PatternError`."""
    written = _WRITTEN.fullmatch(key.text)
    source, flags = (written[1], written[2]) if written else (key.text, "")
    if written and flags.strip("gimsuy"):
        raise PatternError(f"unknown flags {flags[:20]!r}")
    if not written and not key.case_sensitive:
        flags = "i"
    known = "".join(flag for flag in "ims" if flag in flags)
    return known, _ESCAPE.sub(_ESCAPED, source)


def _compile(source: str, max_bytes: int) -> Pattern:
    import re2  # type: ignore[import-untyped]  # here: only cards with patterns pay its 10 ms

    options = re2.Options()
    options.log_errors = False
    options.never_capture = True
    options.max_mem = max_bytes
    try:
        return cast("Pattern", re2.compile(source.encode(errors="replace"), options))
    except re2.error as error:
        detail = error.args[0] if error.args else ""
        said = detail.decode(errors="replace") if isinstance(detail, bytes) else str(detail)
        raise PatternError(said or "not a pattern") from None


class _Patterns:
    """Patterns, looked for by the dozen: most texts match none of them."""

    def __init__(self, found: Sequence[tuple[int, Key, Pattern]]) -> None:
        self._groups: list[tuple[Pattern | None, list[tuple[int, Pattern]]]] = []
        for some in _grouped(found):
            each = [(number, pattern) for number, _, pattern in some]
            self._groups.append((_any_of([key for _, key, _ in some]), each))

    def find(self, text: str, into: set[int]) -> None:
        if not self._groups:
            return
        raw = text.encode(errors="replace")
        for any_of, each in self._groups:
            if any_of is None or any_of.search(raw) is not None:
                into.update(number for number, one in each if one.search(raw) is not None)


def _grouped(
    found: Sequence[tuple[int, Key, Pattern]],
) -> Iterator[list[tuple[int, Key, Pattern]]]:
    some: list[tuple[int, Key, Pattern]] = []
    size = 0
    for one in found:
        size += one[2].programsize
        if some and (len(some) == _TOGETHER or size > _TOGETHER_SIZE):
            yield some
            some, size = [], one[2].programsize
        some.append(one)
    if some:
        yield some


def _any_of(keys: Sequence[Key]) -> Pattern | None:
    """One pattern that matches where any of them does; None when there is no such."""
    if len(keys) == 1:
        return None
    read = [_read(key) for key in keys]
    if any("\\Q" in source for _, source in read):  # could quote its way out of its group
        return None
    try:
        return _compile("|".join(f"(?{flags}:{source})" for flags, source in read), _GROUP_BYTES)
    except PatternError:  # too large together
        return None


@dataclass(slots=True)
class _Plain:
    """Plain keys by the letters they begin with; `short` ones have fewer than three."""

    by_edge: dict[str, list[tuple[int, str, bool]]]
    short: list[tuple[int, str, bool]]

    def add(self, number: int, text: str, whole: bool) -> None:
        found = (number, text, whole)
        if len(text) < _EDGE:
            self.short.append(found)
        else:
            self.by_edge[text[:_EDGE]].append(found)

    def find(self, text: str, into: set[int]) -> None:
        edges = {text[at : at + _EDGE] for at in range(len(text) - _EDGE + 1)}
        for edge in edges & self.by_edge.keys():
            self._look(text, self.by_edge[edge], into)
        self._look(text, self.short, into)

    def _look(self, text: str, keys: list[tuple[int, str, bool]], into: set[int]) -> None:
        for number, key, whole in keys:
            if key in text and (not whole or _stands_alone(key, text)):
                into.add(number)


class KeyIndex:
    """Keys by number. `broken` has, for each pattern that RE2 cannot run, its number and why."""

    def __init__(self, keys: Iterable[Key]) -> None:
        self.broken: dict[int, str] = {}
        self._folded = _Plain(defaultdict(list), [])
        self._exact = _Plain(defaultdict(list), [])
        patterns: list[tuple[int, Key, Pattern]] = []
        tried, size = 0, 0
        self._remembered: OrderedDict[str, frozenset[int]] = OrderedDict()
        for number, key in enumerate(keys):
            if key.is_pattern and (tried >= _MOST_PATTERNS or size >= _MOST_INSTRUCTIONS):
                self.broken[number] = f"{tried} patterns come before it, and that is work enough"
            elif key.is_pattern:
                tried += 1
                try:
                    pattern = compile_pattern(key)
                except PatternError as error:
                    self.broken[number] = str(error)
                    size += _REFUSED * min(len(key.text), _PATTERN_CHARS)
                else:
                    patterns.append((number, key, pattern))
                    size += pattern.programsize
            elif key.case_sensitive:
                self._exact.add(number, key.text, key.whole_words)
            else:
                self._folded.add(number, key.text.lower(), key.whole_words)
        self._patterns = _Patterns(patterns)

    def find(self, text: str) -> frozenset[int]:
        """The numbers of the keys that the text has. Remembers the texts asked for last."""
        known = self._remembered.get(text)
        if known is None:
            known = self._remembered[text] = self._find(text)
            if len(self._remembered) > _REMEMBERED:
                self._remembered.popitem(last=False)
        return known

    def _find(self, text: str) -> frozenset[int]:
        found: set[int] = set()
        self._folded.find(text.lower(), found)
        if self._exact.by_edge or self._exact.short:
            self._exact.find(text, found)
        self._patterns.find(text, found)
        return frozenset(found)


def _stands_alone(key: str, text: str) -> bool:
    """Whether the key stands somewhere in the text with no letter or digit joined to it."""
    at = text.find(key)
    while at >= 0:
        end = at + len(key)
        joined = (at > 0 and _joined(text[at - 1], key[0])) or (
            end < len(text) and _joined(key[-1], text[end])
        )
        if not joined:
            return True
        at = text.find(key, at + 1)
    return False


def _joined(left: str, right: str) -> bool:
    letters = all(one.isalnum() or one == "_" for one in (left, right))
    return letters and not _UNSPACED.match(left) and not _UNSPACED.match(right)
