"""A folder of card files: what is in it, what changed since the last look, and taking in more.

A character's id is its file's name as a slug. Files are kept as they came; a picture is decoded
when it is shown, not when its card is read.
"""

from __future__ import annotations

import os
import re
import secrets
import threading
import unicodedata
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from personas.card import write_card
from personas.importer import ImportedCard, read_any
from personas.limits import ImportLimits
from personas.persona import CardError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from pathlib import Path

    from personas.card import ImportReport
    from personas.limits import Finding
    from personas.persona import Persona

__all__ = ["CARDS", "PICTURES", "Added", "Entry", "Look", "Shelf", "Trouble", "slug"]

CARDS = (
    ".json",
    ".charx",
    ".byaf",
    ".png",
    ".apng",
    ".webp",
    ".jpg",
    ".jpeg",
    ".yaml",
    ".yml",
)
"""Endings of files that are read; of two with one name the earlier ending is the card."""
PICTURES = (".svg", ".png", ".webp", ".jpg", ".jpeg")
"""Endings of pictures that may lie beside a card."""
_NO_CARD = frozenset({"no_card", "unsupported"})
_PART = ".part"
_ID = 120  # characters

Stamp = tuple[int, int, int, str]


@dataclass(frozen=True, slots=True)
class Entry:
    """A character, the file it came from and what its import said.

    `picture` is the file that its avatar is in: the card's own, one beside it, or None.
    """

    persona: Persona
    report: ImportReport
    findings: tuple[Finding, ...]
    container: str
    file: Path
    picture: Path | None = None


@dataclass(frozen=True, slots=True)
class Trouble:
    """A file that cannot be read. `kept`: an earlier state of it still counts."""

    file: str
    code: str
    message: str
    where: str = ""
    kept: bool = False


@dataclass(frozen=True, slots=True)
class Look:
    """What is different since the last look, as ids; `troubles` are the files newly found bad."""

    added: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    troubles: tuple[Trouble, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.added or self.changed or self.removed or self.troubles)


@dataclass(frozen=True, slots=True)
class Added:
    """What became of a file that was brought: `state` is `added`, `replaced` or `unchanged`."""

    state: str
    entry: Entry
    avatar: bytes | None = None


class Shelf:
    """The characters of one folder. Safe between threads; every method reads or writes files."""

    def __init__(self, folder: Path, limits: ImportLimits | None = None) -> None:
        self.folder = folder
        self._limits = limits or ImportLimits()
        self._lock = threading.Lock()
        self._seen: dict[str, Stamp] = {}  # by file name, as it was when it was read
        self._entries: dict[str, Entry] = {}  # by file name
        self._ids: dict[str, str] = {}  # id -> file name
        self._revisions: dict[str, str] = {}  # revision -> file name of one that has it
        self._troubles: dict[str, Trouble] = {}  # by file name

    @property
    def entries(self) -> dict[str, Entry]:
        """The characters by id, in the order of their ids."""
        return {id: self._entries[name] for id, name in sorted(self._ids.items())}

    @property
    def troubles(self) -> tuple[Trouble, ...]:
        """The files that cannot be read as they are now."""
        return tuple(self._troubles.values())

    def look(self) -> Look:
        """Reads what is new or changed. A file that broke keeps its last good state.

        Raises `CardError` (`folder_unreadable`) when the folder cannot be listed.
        """
        with self._lock:
            before = {id: entry.persona.revision for id, entry in self.entries.items()}
            found = [*self._refresh()]
            after = {id: entry.persona.revision for id, entry in self.entries.items()}
        return Look(
            added=tuple(id for id in after if id not in before),
            changed=tuple(id for id in after if before.get(id, after[id]) != after[id]),
            removed=tuple(id for id in before if id not in after),
            troubles=tuple(found),
        )

    def add(
        self,
        raw: bytes,
        filename: str = "",
        *,
        replace_id: str | None = None,
        replace_known: bool = False,
        taken: Collection[str] = (),
        with_avatar: bool = True,
        beside: Path | None = None,
    ) -> Added:
        """Takes in a file of any kind `read_any` knows, under a free id or in place of one.

        `replace_id` is in place of that one; `replace_known` of the one with the character's own
        id, if any has it. A character that is here already is `unchanged`. `taken` are ids that
        may not be used besides. `with_avatar` decodes the picture, so that a bad one is found now.
        `beside` is a picture for a card that has none; one that is replaced keeps its own then.
        Raises `CardError`: those of `read_any`, `no_character` for a lorebook alone, `bad_id` for a
        `replace_id` that is no slug, `unwritable`.
        """
        if replace_id is not None and slug(replace_id[:_ID]) != (replace_id or None):
            raise CardError("bad_id", "an id has letters, digits and hyphens", where="id")
        imported = read_any(raw, filename=filename, limits=self._limits, with_avatar=with_avatar)
        if not isinstance(imported, ImportedCard):
            message = "the file is a lorebook without a character"
            raise CardError("no_character", message, where=filename)
        ending = "." + imported.container.rpartition(" ")[2]
        ending = {".jpeg": ".jpg", ".apng": ".png"}.get(ending, ending)
        if ending not in CARDS:
            raw, ending = write_card(imported.persona), ".json"
        with self._lock:
            twin = self._entries.get(self._revisions.get(imported.persona.revision, ""))
            if twin is not None and replace_id in (None, twin.persona.id):
                return Added("unchanged", twin, imported.avatar)
            if replace_known and imported.persona.id in self._ids:
                replace_id = imported.persona.id
            known = replace_id in self._ids
            if replace_id is None:
                id, path = self._place(raw, imported.persona.id, ending, taken)
            else:
                id, path = replace_id, self._put(raw, replace_id, ending, exclusive=False)
                before = self._ids.get(id, path.name)
                if before != path.name:
                    if imported.picture is not None or _ending(before) not in PICTURES:
                        (self.folder / before).unlink(missing_ok=True)
                    self._forget(before)
            side = self._portray(path, imported, beside)
            if id == imported.persona.id:  # else a nameless one is called by its new id
                self._enter(path, imported, side)
                self._seen[path.name] = _stamp(path, side)
            else:
                self._read(path, _stamp(path, side), side)
            return Added(
                "replaced" if known else "added", self._entries[path.name], imported.avatar
            )

    def remove(self, id: str) -> bool:
        """Deletes a character's file, and the picture beside it; whether there was one."""
        with self._lock:
            name = self._ids.get(id)
            if name is None:
                return False
            entry = self._entries[name]
            entry.file.unlink(missing_ok=True)
            if entry.picture is not None:
                entry.picture.unlink(missing_ok=True)
            self._forget(name)
            return True

    def _refresh(self) -> Iterator[Trouble]:
        try:
            with os.scandir(self.folder) as listed:
                files = {item.name: item for item in listed if not item.name.startswith(".")}
        except OSError as error:
            message = f"cannot list the cards in {self.folder}: {error.strerror}"
            raise CardError("folder_unreadable", message, where=str(self.folder)) from error
        for name in [*self._seen]:
            if name not in files:
                self._forget(name)
        owners: dict[str, str] = {}  # which file has an id
        for name in sorted(files, key=_order):
            if _ending(name) not in CARDS or not files[name].is_file():
                continue
            path = self.folder / name
            stem = name[: -len(_ending(name))]
            if owners.get(f"stem {stem}"):
                self._forget(name)  # the picture beside a card
                continue
            side = next(
                (stem + e for e in PICTURES if stem + e in files and stem + e != name), None
            )
            trouble = self._check(name, owners)
            if trouble is None:
                try:
                    stamp = _stamp(path, side)
                except OSError as error:
                    trouble = Trouble(name, "unreadable", f"{error.strerror}")
                else:
                    owners[f"stem {stem}"] = owners[slug(stem)] = name
                    if self._seen.get(name) == stamp:
                        continue
                    self._read(path, stamp, side)
                    trouble = self._troubles.get(name)
                    if trouble is not None:
                        yield trouble
                    continue
            if self._troubles.get(name) != trouble:
                self._forget(name)
                self._troubles[name] = trouble
                yield trouble

    def _check(self, name: str, owners: dict[str, str]) -> Trouble | None:
        id = slug(name[: -len(_ending(name))])
        if not id:
            return Trouble(name, "bad_name", "the file's name has no letter and no digit")
        if id in owners:
            return Trouble(name, "id_taken", f"{owners[id]} has the id {id!r} already")
        return None

    def _read(self, path: Path, stamp: Stamp, side: str | None) -> None:
        """Reads a file into its entry, or says why not and leaves the entry as it was."""
        name = path.name
        self._seen[name] = stamp
        kept = name in self._entries
        try:
            raw = _bytes(path, self._limits.file_bytes)
            id = slug(name[: -len(_ending(name))])
            imported = read_any(raw, filename=name, id=id, limits=self._limits, with_avatar=False)
            if not isinstance(imported, ImportedCard):
                raise CardError("no_character", "the file is a lorebook without a character")
        except CardError as error:
            if error.code in _NO_CARD and _ending(name) in PICTURES and not kept:
                self._troubles.pop(name, None)  # just a picture
                return
            self._troubles[name] = Trouble(name, error.code, error.message, error.where, kept)
        except OSError as error:
            self._troubles[name] = Trouble(name, "unreadable", str(error.strerror), "", kept)
        else:
            self._enter(path, imported, side)

    def _enter(self, path: Path, imported: ImportedCard, side: str | None) -> None:
        self._forget(path.name, seen=False)
        picture = path.parent / side if side else path if imported.picture else None
        persona = replace(imported.persona, avatar=picture.name if picture else None)
        self._entries[path.name] = Entry(
            persona, imported.report, imported.findings, imported.container, path, picture
        )
        self._ids[persona.id] = self._revisions[persona.revision] = path.name

    def _forget(self, name: str, *, seen: bool = True) -> None:
        if seen:
            self._seen.pop(name, None)
        self._troubles.pop(name, None)
        entry = self._entries.pop(name, None)
        if entry is not None:
            self._ids.pop(entry.persona.id)
            if self._revisions.get(entry.persona.revision) == name:
                del self._revisions[entry.persona.revision]

    def _place(
        self, raw: bytes, base: str, ending: str, taken: Collection[str]
    ) -> tuple[str, Path]:
        """Writes under the first free id: `luna`, `luna-2`, …"""
        number = 1
        while True:
            id = base if number == 1 else f"{base}-{number}"
            free = (
                id not in taken
                and id not in self._ids
                and not any((self.folder / (id + e)).exists() for e in CARDS)
            )
            if free:
                try:
                    return id, self._put(raw, id, ending, exclusive=True)
                except FileExistsError:
                    pass  # another process was faster
            number += 1

    def _portray(self, path: Path, imported: ImportedCard, beside: Path | None) -> str | None:
        """The name of the picture beside a card that was just written; one that has its own
        needs none."""
        sides = [path.with_suffix(ending) for ending in PICTURES if ending != path.suffix]
        there = [side for side in sides if side.exists()]
        if imported.picture is not None:
            for side in there:
                side.unlink(missing_ok=True)
            return None
        if beside is not None:
            raw = _bytes(beside, self._limits.file_bytes)
            return self._put(raw, path.stem, _ending(beside.name), exclusive=False).name
        return there[0].name if there else None

    def _put(self, raw: bytes, id: str, ending: str, *, exclusive: bool) -> Path:
        """Whole or not at all: nobody who looks into the folder finds half a file."""
        path = self.folder / (id + ending)
        part = self.folder / f".{secrets.token_hex(8)}{_PART}"
        try:
            part.write_bytes(raw)
            if exclusive:
                os.link(part, path)
            else:
                os.replace(part, path)
        except FileExistsError:
            raise
        except OSError as error:
            message = f"cannot write {path.name}: {error.strerror}"
            raise CardError("unwritable", message, where=path.name) from error
        finally:
            part.unlink(missing_ok=True)
        return path


def slug(name: str) -> str:
    """`Old Tom` becomes `old-tom`; letters of any script stay; empty without any."""
    plain = unicodedata.normalize("NFKC", name).lower()
    return re.sub(r"[\W_]+", "-", plain).strip("-")


def _ending(name: str) -> str:
    dot = name.rfind(".")
    return name[dot:].lower() if dot > 0 else ""


def _order(name: str) -> tuple[int, str]:
    """Cards before what may be the picture beside them, then by name."""
    ending = _ending(name)
    return (CARDS.index(ending) if ending in CARDS else len(CARDS), name)


def _stamp(path: Path, side: str | None) -> Stamp:
    found = path.stat()
    return (found.st_mtime_ns, found.st_size, found.st_ino, side or "")


def _bytes(path: Path, limit: int) -> bytes:
    """The bytes of a file, without taking more than `limit` of them into memory."""
    with path.open("rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise CardError("too_large", f"more than {limit} bytes", where=path.name)
    return data
