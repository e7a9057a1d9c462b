"""The characters of a running server: the library's, and every revision that a chat stays with."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn, Protocol

import structlog

from gateway.errors import HistoryError
from personas.persona import CardError, PersonaNotFound

if TYPE_CHECKING:
    from collections.abc import Iterable

    from personas.library import Library
    from personas.persona import Persona
    from personas.shelf import Added, Look

__all__ = ["Characters", "Revision", "Revisions"]

log = structlog.get_logger()

LOOK_EVERY = 2.0
"""Seconds between two looks into the folder."""
KEEP = 64
"""Revisions in memory that are not the newest of their character."""


@dataclass(frozen=True, slots=True)
class Revision:
    """One line of the list of a character's revisions; `added` in Unix seconds."""

    revision: str
    name: str
    added: float


class Revisions(Protocol):
    """Durable revisions of characters. Every method raises `HistoryError` when the store fails."""

    async def keep(self, personas: Iterable[Persona]) -> int:
        """Stores those that are not stored; returns how many."""
        ...

    async def load(self, persona_id: str, revision: str) -> Persona | None:
        """The character as it was, or None."""
        ...

    async def of(self, persona_id: str) -> tuple[Revision, ...]:
        """What is stored of a character, the newest first."""
        ...

    async def drop(self, persona_id: str) -> None:
        """Forgets the revisions of a character that no chat stays with."""
        ...


class Characters:
    """Reads the library, keeps its revisions, and finds the one that a chat began with."""

    def __init__(self, library: Library, revisions: Revisions) -> None:
        self.library = library
        self.revisions = revisions
        self._old: OrderedDict[tuple[str, str], Persona] = OrderedDict()
        self._changing = asyncio.Lock()

    async def open(self) -> None:
        """Stores the revisions that the library has now. Raises `HistoryError`."""
        stored = await self.revisions.keep(self.library.list())
        log.info("characters_read", count=len(self.library.list()), new=stored)

    async def follow(self) -> NoReturn:
        """Sees what changes in the folder, until it is cancelled."""
        failing = ""
        while True:
            await asyncio.sleep(LOOK_EVERY)
            try:
                await self.look()
                failing = ""
            except (CardError, HistoryError) as error:
                if error.message != failing:  # said once, not every two seconds
                    log.warning("characters_not_read", error=error.message)
                failing = error.message

    async def look(self) -> Look:
        """Looks into the folder now. Raises `CardError` and `HistoryError`."""
        async with self._changing:
            look = await asyncio.to_thread(self.library.refresh)
            if look.added or look.changed or look.removed:
                fresh = {*look.added, *look.changed}
                await self.revisions.keep(p for p in self.library.list() if p.id in fresh)
                log.info(
                    "characters_changed",
                    added=list(look.added[:20]),
                    changed=list(look.changed[:20]),
                    removed=list(look.removed[:20]),
                )
        return look

    async def add(self, raw: bytes, filename: str, replace_id: str | None = None) -> Added:
        """Takes in a file; see `Library.add`. Raises `CardError` and `HistoryError`."""
        async with self._changing:
            added = await asyncio.to_thread(self.library.add, raw, filename, replace_id=replace_id)
            await self.revisions.keep([added.entry.persona])
        persona = added.entry.persona
        log.info("character_added", persona=persona.id, state=added.state, rev=persona.revision)
        return added

    async def remove(self, persona_id: str) -> None:
        """Deletes a character; chats with it go on. See `Library.remove`."""
        async with self._changing:
            await asyncio.to_thread(self.library.remove, persona_id)
            await self.revisions.drop(persona_id)
            await self.revisions.keep(p for p in self.library.list() if p.id == persona_id)
        log.info("character_removed", persona=persona_id)

    async def at(self, persona_id: str, revision: str) -> Persona:
        """The character as it was in this revision, whatever became of its file.

        Raises `PersonaNotFound` and `HistoryError`.
        """
        found = await self._find(persona_id, revision)
        if found is None:
            raise PersonaNotFound(f"{persona_id}@{revision}")
        return found

    async def of_chat(self, persona_id: str, revision: str) -> Persona:
        """The character of a chat: in its revision, or as it is now where that was never kept.

        Raises `PersonaNotFound` and `HistoryError`.
        """
        found = await self._find(persona_id, revision)
        return self.library.get(persona_id) if found is None else found

    async def _find(self, persona_id: str, revision: str) -> Persona | None:
        try:
            newest = self.library.get(persona_id)
        except PersonaNotFound:
            newest = None
        if newest is not None and newest.revision == revision:
            return newest
        key = (persona_id, revision)
        if key not in self._old:
            found = await self.revisions.load(persona_id, revision)
            if found is None:
                return None
            self._old[key] = found
            if len(self._old) > KEEP:
                self._old.popitem(last=False)
        self._old.move_to_end(key)
        return self._old[key]
