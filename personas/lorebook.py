"""Books of lore, compiled to be searched, and the words for what becomes of their entries.

`personas.lorebook_watch` follows a chat and says which entries come in; `personas.prompt` gives
them a place and pays their tokens.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from personas.lorebook_keys import Key, KeyIndex
from personas.macros import expand, tells_time
from personas.persona import LoreEntry, Place

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from personas.persona import Lorebook

__all__ = ["Active", "Cause", "Lore", "Rejected", "Turnout", "closes", "is_permanent"]


_FOLLOWED = 64


class Cause(StrEnum):
    """Why an entry comes in."""

    CONSTANT = "constant"
    KEY = "key"
    """A message has a key."""
    RECURSION = "recursion"
    """The text of another entry has a key."""
    SOURCE = "source"
    """A field of the persona has a key."""
    STICKY = "sticky"
    KEPT = "kept"
    """It matched once, and `@@keep_activate_after_match` keeps it."""
    FORCED = "forced"


@dataclass(frozen=True, slots=True)
class Active:
    """An entry that comes in. `source` is the message (its index) or entry (its id) with `key`.

    `book` is the number of its book; `step` counts recursion, 0 for what the chat brought in.
    """

    entry: LoreEntry
    book: int
    cause: Cause
    key: str = ""
    source: int | str | None = None
    step: int = 0


@dataclass(frozen=True, slots=True)
class Rejected:
    """An entry whose key matched and that stays out all the same, and why."""

    entry: LoreEntry
    book: int
    key: str
    why: str


@dataclass(frozen=True, slots=True)
class Turnout:
    """Who comes to a turn, by order of insertion, and who was turned away."""

    active: tuple[Active, ...] = ()
    rejected: tuple[Rejected, ...] = ()


def closes(entry: LoreEntry) -> bool:
    """Whether an entry wants to be the last word of every prompt."""
    return entry.place is Place.DEPTH and entry.depth == 0


def is_permanent(entry: LoreEntry) -> bool:
    """Whether it comes in at every turn of every chat, in the scene or as the last word."""
    moves = entry.place is Place.EXAMPLES or (entry.place is Place.DEPTH and entry.depth > 0)
    if not entry.enabled or moves:
        return False
    if entry.forced or not entry.constant:
        return entry.forced
    timed = entry.cooldown or entry.delay or entry.after_replies or entry.every_replies > 1
    bound = entry.once or entry.greeting is not None or entry.groups or entry.delay_recursion
    keyed = entry.additional_keys or entry.exclude_keys
    return not (entry.barred or entry.probability < 100 or timed or bound or keyed)


@dataclass(frozen=True, slots=True)
class EntryKeys:
    """An entry's keys by their number in the index."""

    primary: tuple[int, ...]
    secondary: tuple[int, ...]
    additional: tuple[int, ...]
    excluded: tuple[int, ...]


class Lore:
    """Books, compiled: made once for a persona and never changed but for what it remembers.

    `names` are what `{{char}}` and `{{user}}` stand for in keys; `asks_names` says that there are
    such keys.
    `broken` names each pattern that cannot run: the entry's id, the key and why. Such a key
    matches nothing.
    """

    def __init__(self, books: Sequence[Lorebook], names: Mapping[str, str] | None = None) -> None:
        self.books = tuple(books)
        self.entries: list[tuple[int, LoreEntry]] = [
            (number, entry)
            for number, book in enumerate(books)
            for entry in book.entries
            if entry.enabled and (entry.content.strip() or entry.disables_system_prompt)
        ]
        numbers: dict[Key, int] = {}
        self.keys = [_keys(entry, numbers, names) for _, entry in self.entries]
        self.asks_names = any("{{" in key.text for key in numbers)
        self._texts = [key.text for key in numbers]
        self.index = KeyIndex(numbers)
        self.followed: OrderedDict[str, object] = OrderedDict()
        self.by_key: dict[int, list[int]] = defaultdict(list)
        for at, keys in enumerate(self.keys):
            for key in keys.primary:
                self.by_key[key].append(at)
        self.broken = tuple(
            (entry.id, self._texts[key], self.index.broken[key])
            for (_, entry), keys in zip(self.entries, self.keys, strict=True)
            for key in (*keys.primary, *keys.secondary, *keys.additional, *keys.excluded)
            if key in self.index.broken
        )
        self.permanent = tuple(
            Active(entry, book, Cause.FORCED if entry.forced else Cause.CONSTANT)
            for book, entry in sorted(self.entries, key=_insertion)
            if is_permanent(entry)
        )
        self.unprompted = [
            at
            for at, (_, entry) in enumerate(self.entries)
            if entry.constant or entry.forced or entry.sources
        ]
        self.fixed = {at for at, (_, entry) in enumerate(self.entries) if is_permanent(entry)}
        self.furthest = max(map(self.depth, range(len(self.entries))), default=0)
        self.levels = sorted({entry.delay_recursion for _, entry in self.entries} - {0})
        self.tells_time = any(tells_time(entry.content) for _, entry in self.entries)
        self.lasting = {at for at, (_, e) in enumerate(self.entries) if e.sticky or e.keep}
        self.sources = frozenset(name for _, entry in self.entries for name in entry.sources)
        self.asks_greeting = any(entry.greeting is not None for _, entry in self.entries)

    def remember(self, chat: str, followed: object) -> None:
        """Keeps how far a chat was followed, for the chats that spoke last."""
        self.followed[chat] = followed
        if len(self.followed) > _FOLLOWED:
            self.followed.popitem(last=False)

    def text_of(self, key: int) -> str:
        """The key as its author wrote it."""
        return self._texts[key]

    def depth(self, at: int) -> int:
        """How many messages an entry's keys are looked for in."""
        book, entry = self.entries[at]
        return self.books[book].scan_depth if entry.scan_depth is None else entry.scan_depth


def _keys(entry: LoreEntry, numbers: dict[Key, int], names: Mapping[str, str] | None) -> EntryKeys:
    def number(texts: Iterable[str]) -> tuple[int, ...]:
        keys = (
            Key(
                expand(text, names, seed=None) if names and "{{" in text else text,
                entry.regex,
                entry.case_sensitive,
                entry.whole_words,
            )
            for text in texts
            if text.strip()
        )
        return tuple(numbers.setdefault(key, len(numbers)) for key in keys)

    return EntryKeys(
        number(entry.keys),
        number(entry.secondary_keys),
        number(entry.additional_keys),
        number(entry.exclude_keys),
    )


def _insertion(found: tuple[int, LoreEntry]) -> tuple[int, int]:
    return found[1].order, found[0]
