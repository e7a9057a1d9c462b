"""The characters there are: the shipped ones and those of a person's own folder."""

from __future__ import annotations

import difflib
import logging
import threading
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from personas.importer import read_picture
from personas.limits import ImportLimits
from personas.persona import CardError, Persona, PersonaNotFound
from personas.pictures import Picture, for_page
from personas.shelf import Look, Shelf

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from personas.shelf import Added, Entry, Trouble

__all__ = ["Library"]

_log = logging.getLogger(__name__)

_SHIPPED = Path(__file__).parent / "cards"
_SVG_BYTES = 1 << 20
# What a page shows is small; the card's own picture is in its file.
_AVATAR_SIDE = 512
_CACHED_BYTES = 64 << 20


class Library:
    """Personas by id. Safe between threads; `avatar`, `refresh`, `add`, `remove` touch files."""

    def __init__(
        self,
        shelves: Collection[Shelf],
        own: Shelf | None = None,
        limits: ImportLimits | None = None,
    ) -> None:
        """Use `shipped` or `open`. Of two characters with one id the later shelf's counts."""
        self._shelves = (*shelves, *([own] if own else []))
        self._own = own
        self._pictures = _Pictures(replace(limits or ImportLimits(), avatar_side=_AVATAR_SIDE))
        self._entries: dict[str, Entry] = {}
        self._words: dict[str, str] = {}
        self._troubles: tuple[Trouble, ...] = ()
        self._merge()

    @classmethod
    def shipped(cls) -> Library:
        """The characters that come with the package."""
        return cls.open()

    @classmethod
    def open(cls, folder: Path | None = None, limits: ImportLimits | None = None) -> Library:
        """The shipped characters and the cards of a folder, which may replace them.

        A card that cannot be read is logged and left out. Raises `CardError`
        (`folder_unreadable`) when the folder itself cannot be listed.
        """
        shipped = Shelf(_SHIPPED)
        shipped.look()
        library = cls((shipped,), None if folder is None else Shelf(folder, limits), limits)
        library.refresh()
        return library

    @property
    def troubles(self) -> tuple[Trouble, ...]:
        """The files of the own folder that cannot be read."""
        return self._troubles

    def list(self) -> tuple[Persona, ...]:
        """Every persona, the shipped ones first."""
        return tuple(entry.persona for entry in self._entries.values())

    def get(self, persona_id: str) -> Persona:
        """Raises `PersonaNotFound`, with the nearest id there is."""
        return self.entry(persona_id).persona

    def entry(self, persona_id: str) -> Entry:
        """The persona with its file and the report of its import. Raises `PersonaNotFound`."""
        entry = self._entries.get(persona_id)
        if entry is None:
            near = difflib.get_close_matches(persona_id[:80].lower(), self._entries, n=1)
            raise PersonaNotFound(persona_id, near[0] if near else None)
        return entry

    def is_own(self, persona_id: str) -> bool:
        """Whether the persona is of the own folder, and not shipped."""
        entry = self._entries.get(persona_id)
        return entry is not None and self._own is not None and entry.file.parent == self._own.folder

    def search(self, words: str = "", tags: Collection[str] = ()) -> tuple[Persona, ...]:
        """The personas with all these tags and all words, in name, tags or texts.

        Case does not matter. Those with every word in their name come first, then those whose
        tags and name have them all, then the others.
        """
        wanted, marks = words.casefold().split(), {tag.casefold() for tag in tags}
        found: list[tuple[int, Persona]] = []
        for entry in self._entries.values():
            persona = entry.persona
            own = {tag.casefold() for tag in persona.tags}
            if not marks <= own:
                continue
            name = f"{persona.name} {persona.nickname} {persona.id}".casefold()
            tagged = " ".join((name, *own))
            for rank, text in enumerate((name, tagged, self._words[persona.id])):
                if all(word in text for word in wanted):
                    found.append((rank, persona))
                    break
        return tuple(persona for _, persona in sorted(found, key=lambda pair: pair[0]))

    def tags(self) -> Mapping[str, int]:
        """How many personas have each tag, the most frequent first; spelled as first met."""
        spelled: dict[str, str] = {}
        counts: dict[str, int] = {}
        for entry in self._entries.values():
            keys = (spelled.setdefault(tag.casefold(), tag) for tag in entry.persona.tags)
            for key in dict.fromkeys(keys):
                counts[key] = counts.get(key, 0) + 1
        return dict(sorted(counts.items(), key=lambda pair: (-pair[1], pair[0].casefold())))

    def refresh(self) -> Look:
        """Looks into the own folder; what is new, changed or gone counts from now on.

        A file that broke keeps its last good state and is logged. Raises `CardError`
        (`folder_unreadable`); then nothing changed.
        """
        look = self._own.look() if self._own else Look()
        for trouble in look.troubles:
            _log.warning(
                "card_skipped file=%s code=%s where=%s kept=%s error=%s",
                trouble.file,
                trouble.code,
                trouble.where,
                trouble.kept,
                trouble.message,
            )
        if look or (self._own and self._own.troubles != self._troubles):
            self._merge()
        return look

    def add(
        self,
        raw: bytes,
        filename: str = "",
        *,
        replace_id: str | None = None,
        with_avatar: bool = True,
    ) -> Added:
        """Takes a file into the own folder; see `Shelf.add`. Raises `CardError`."""
        if self._own is None:
            raise CardError("unwritable", "there is no folder for characters of one's own")
        shipped = {id for shelf in self._shelves if shelf is not self._own for id in shelf.entries}
        added = self._own.add(
            raw, filename, replace_id=replace_id, taken=shipped, with_avatar=with_avatar
        )
        if added.state != "unchanged":
            self._merge()
        return added

    def remove(self, persona_id: str) -> None:
        """Deletes a character of the own folder; a shipped one of that id is there again.

        Raises `PersonaNotFound`, and `CardError` (`shipped`) for one that came with the package.
        """
        self.entry(persona_id)
        if self._own is None or not self._own.remove(persona_id):
            message = f"{persona_id!r} came with greenroom and cannot be deleted"
            raise CardError("shipped", message, where=persona_id)
        self._merge()

    def avatar(self, persona_id: str) -> Picture | None:
        """The persona's picture, made anew from its file; None when it has none.

        Reads and decodes at the first call for a revision. Raises `PersonaNotFound`.
        """
        entry = self.entry(persona_id)
        if entry.picture is None:
            return None
        try:
            return self._pictures.get(entry, entry.picture)
        except (OSError, CardError) as error:
            _log.warning("avatar_unreadable persona=%s error=%s", persona_id, error)
            return None

    def _merge(self) -> None:
        entries: dict[str, Entry] = {}
        for shelf in self._shelves:
            entries |= shelf.entries
        old, words = self._entries, self._words
        self._words = {
            id: words[id] if old.get(id) is entry else _words(entry.persona)
            for id, entry in entries.items()
        }
        self._entries = entries
        self._troubles = self._own.troubles if self._own else ()


class _Pictures:
    """Pictures that were made anew, the latest ones within a bound."""

    def __init__(self, limits: ImportLimits) -> None:
        self._limits = limits
        self._made: OrderedDict[tuple[Path, int], Picture] = OrderedDict()
        self._size = 0
        self._lock = threading.Lock()

    def get(self, entry: Entry, path: Path) -> Picture:
        """Raises `OSError` and `CardError`."""
        key = (path, path.stat().st_mtime_ns)
        with self._lock:
            if key in self._made:
                self._made.move_to_end(key)
                return self._made[key]
        made = _picture(entry, path, self._limits)
        with self._lock:
            self._made[key] = made
            self._size += len(made.data)
            while self._size > _CACHED_BYTES and len(self._made) > 1:
                _, gone = self._made.popitem(last=False)
                self._size -= len(gone.data)
        return made


def _picture(entry: Entry, path: Path, limits: ImportLimits) -> Picture:
    if path.stat().st_size > limits.file_bytes:
        raise CardError("too_large", f"more than {limits.file_bytes} bytes", where=path.name)
    raw = path.read_bytes()
    if path.suffix.lower() == ".svg":  # served so that it can run nothing
        if len(raw) > _SVG_BYTES:
            raise CardError("too_large", f"more than {_SVG_BYTES} bytes", where=path.name)
        return Picture(raw, "image/svg+xml")
    if path == entry.file:
        picture = read_picture(raw, limits)
        if picture is None:
            raise CardError("no_picture", "the card has no picture any more", where=path.name)
        raw = picture
    return for_page(raw, limits)


def _words(persona: Persona) -> str:
    """What a search looks through."""
    parts = (
        persona.id,
        persona.name,
        persona.nickname,
        *persona.tags,
        persona.tagline,
        persona.creator,
        persona.creator_notes,
        persona.description,
        persona.personality,
        persona.scenario,
    )
    return "\n".join(parts).casefold()
