"""Revisions of characters in the database of the conversations."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

import sqlalchemy as sa
import structlog

from gateway.characters import Revision
from gateway.schema import chats, revisions
from personas.card import read_card
from personas.persona import CardError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from gateway.sql_history import SqlHistory
    from personas.persona import Persona

__all__ = ["SqlRevisions"]

log = structlog.get_logger()

AT_ONCE = 100
"""Cards of one transaction: others may write in between."""


class SqlRevisions:
    """Implements `gateway.characters.Revisions` beside the history, on its thread."""

    def __init__(self, history: SqlHistory) -> None:
        self._history = history

    async def keep(self, personas: Iterable[Persona]) -> int:
        def known(connection: sa.Connection) -> set[tuple[str, str]]:
            pairs = sa.select(revisions.c.persona, revisions.c.revision)
            return {(row.persona, row.revision) for row in connection.execute(pairs)}

        have = await self._history.run(known)
        fresh = {(p.id, p.revision): p for p in personas if (p.id, p.revision) not in have}
        values = [*fresh.values()]
        for start in range(0, len(values), AT_ONCE):
            await self._insert(values[start : start + AT_ONCE])
        return len(values)

    async def _insert(self, personas: list[Persona]) -> None:
        now = time.time()
        rows = [
            {
                "persona": persona.id,
                "revision": persona.revision,
                "name": persona.name,
                "tags": list(persona.tags),
                "card": json.dumps(dict(persona.card)),
                "added": now,
            }
            for persona in personas
        ]
        await self._history.run(lambda connection: connection.execute(revisions.insert(), rows))

    async def load(self, persona_id: str, revision: str) -> Persona | None:
        def work(connection: sa.Connection) -> str | None:
            row = sa.select(revisions.c.card).where(
                revisions.c.persona == persona_id, revisions.c.revision == revision
            )
            card: str | None = connection.execute(row).scalar_one_or_none()
            return card

        card = await self._history.run(work)
        if card is None:
            return None
        try:
            return read_card(card.encode(), id=persona_id).persona
        except CardError as error:  # only a hand in the database can do that
            log.error("revision_unreadable", persona=persona_id, rev=revision, error=error.message)
            return None

    async def of(self, persona_id: str) -> tuple[Revision, ...]:
        def work(connection: sa.Connection) -> tuple[Revision, ...]:
            known = sa.select(revisions).where(revisions.c.persona == persona_id)
            newest = known.order_by(revisions.c.added.desc(), revisions.c.revision)
            return tuple(
                Revision(row.revision, row.name, row.added) for row in connection.execute(newest)
            )

        return await self._history.run(work)

    async def drop(self, persona_id: str) -> None:
        def work(connection: sa.Connection) -> None:
            pinned = sa.select(chats.c.persona_revision).where(chats.c.persona_id == persona_id)
            connection.execute(
                revisions.delete().where(
                    revisions.c.persona == persona_id, revisions.c.revision.not_in(pinned)
                )
            )

        await self._history.run(work)
