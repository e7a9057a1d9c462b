"""The characters there are: the shipped ones and those of a person's own folder."""

from __future__ import annotations

import difflib
import logging
import re
import unicodedata
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING, NamedTuple

from personas.card import CardLimits, Imported, read_card
from personas.persona import CardError, Persona, PersonaNotFound

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from importlib.resources.abc import Traversable
    from pathlib import Path

__all__ = ["Avatar", "Library"]

_log = logging.getLogger(__name__)

_MEDIA_TYPES = {
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".webp": "image/webp",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".gif": "image/gif",
}
_AVATAR_BYTES = 4 << 20


class Avatar(NamedTuple):
    """A picture as it lies beside its card."""

    data: bytes
    media_type: str


@dataclass(frozen=True, slots=True)
class _Entry:
    imported: Imported
    folder: Traversable


class Library:
    """Personas by id. The id is the card's file name as a slug."""

    def __init__(self, entries: Iterable[_Entry]) -> None:
        """Use `shipped` or `open`. Of two entries with one id the later one counts."""
        self._entries = {entry.imported.persona.id: entry for entry in entries}

    @classmethod
    def shipped(cls) -> Library:
        """The characters that come with the package."""
        return cls.open()

    @classmethod
    def open(cls, folder: Path | None = None) -> Library:
        """The shipped characters and the `*.json` cards of a folder, which may replace them.

        A card that cannot be read is logged and left out. Raises `CardError`
        (`folder_unreadable`) when the folder itself cannot be listed.
        """
        entries = [*_load(files("personas") / "cards")]
        if folder is not None:
            entries += _load(folder)
        return cls(entries)

    def list(self) -> tuple[Persona, ...]:
        """Every persona, the shipped ones first."""
        return tuple(entry.imported.persona for entry in self._entries.values())

    def get(self, persona_id: str) -> Persona:
        """Raises `PersonaNotFound`, with the nearest id there is."""
        return self._find(persona_id).imported.persona

    def imported(self, persona_id: str) -> Imported:
        """The persona with the report of its import. Raises `PersonaNotFound`."""
        return self._find(persona_id).imported

    def avatar(self, persona_id: str) -> Avatar | None:
        """Reads the persona's picture; None when it has none. Raises `PersonaNotFound`."""
        entry = self._find(persona_id)
        name = entry.imported.persona.avatar
        if name is None:
            return None
        try:
            data = _read(entry.folder / name, _AVATAR_BYTES)
        except (OSError, CardError) as error:
            _log.warning("avatar_unreadable persona=%s error=%s", persona_id, error)
            return None
        return Avatar(data, _MEDIA_TYPES[_suffix(name)])

    def _find(self, persona_id: str) -> _Entry:
        entry = self._entries.get(persona_id)
        if entry is None:
            near = difflib.get_close_matches(persona_id[:80].lower(), self._entries, n=1)
            raise PersonaNotFound(persona_id, near[0] if near else None)
        return entry


def _load(folder: Traversable) -> Iterator[_Entry]:
    try:
        paths = {path.name: path for path in folder.iterdir() if path.is_file()}
    except OSError as error:
        message = f"cannot list the cards in {folder}: {error.strerror}"
        raise CardError("folder_unreadable", message, where=str(folder)) from error
    taken: dict[str, str] = {}
    for name in sorted(paths):
        if _suffix(name) != ".json":
            continue
        try:
            persona_id = _slug(name)
            if persona_id in taken:
                message = f"{taken[persona_id]} has the id {persona_id!r} already"
                raise CardError("id_taken", message, where=name)
            raw = _read(paths[name], CardLimits().size)
            imported = read_card(raw, id=persona_id, avatar=_picture(name, paths))
        except CardError as error:
            _log.warning(
                "card_skipped file=%s code=%s where=%s error=%s",
                name,
                error.code,
                error.where,
                error.message,
            )
        except OSError as error:
            _log.warning("card_skipped file=%s code=unreadable error=%s", name, error)
        else:
            taken[persona_id] = name
            yield _Entry(imported, folder)


def _read(path: Traversable, limit: int) -> bytes:
    """The bytes of a file, without taking more than `limit` of them into memory."""
    with path.open("rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise CardError("too_large", f"more than {limit} bytes", where=path.name)
    return data


def _picture(name: str, paths: Iterable[str]) -> str | None:
    """The name of the picture beside a card: the same name with a picture's ending."""
    stem = name[: -len(".json")]
    there = set(paths)
    return next((stem + ending for ending in _MEDIA_TYPES if stem + ending in there), None)


def _suffix(name: str) -> str:
    dot = name.rfind(".")
    return name[dot:].lower() if dot > 0 else ""


def _slug(name: str) -> str:
    """`Old Tom.json` becomes `old-tom`; letters of any script stay."""
    stem = unicodedata.normalize("NFKC", name[: -len(".json")]).lower()
    slug = re.sub(r"[\W_]+", "-", stem).strip("-")
    if not slug:
        raise CardError("bad_name", "the file's name has no letter and no digit", where=name)
    return slug
