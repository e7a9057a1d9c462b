"""Conversations in SQLite through SQLAlchemy Core. Imported only by the server's wiring."""

from __future__ import annotations

import array
import sqlite3
import sys
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from backends.api import Role, SampledTokens
from gateway.errors import HistoryError, HistoryFault
from gateway.history import Chat, ChatOrigin, ChatSummary, StoredMessage, TurnRecord, preview
from gateway.protocol import Error, MessageStatus, Stats
from gateway.schema import HEAD, chat_files, chats, erasures, messages, turns
from gateway.writer import Writer
from personas.persona import Note

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

__all__ = ["SqlHistory", "pack_ids", "unpack_ids"]

R = TypeVar("R")
LIVE = "live"
BUSY_MS = 5000

FAULTS = {
    sqlite3.SQLITE_NOTADB: (HistoryFault.DAMAGED, "is damaged or no SQLite database"),
    sqlite3.SQLITE_CORRUPT: (HistoryFault.DAMAGED, "is damaged"),
    sqlite3.SQLITE_BUSY: (HistoryFault.LOCKED, "is locked by another process"),
    sqlite3.SQLITE_LOCKED: (HistoryFault.LOCKED, "is locked by another process"),
    sqlite3.SQLITE_READONLY: (HistoryFault.UNWRITABLE, "cannot be written"),
    sqlite3.SQLITE_CANTOPEN: (HistoryFault.UNWRITABLE, "cannot be opened"),
    sqlite3.SQLITE_PERM: (HistoryFault.UNWRITABLE, "cannot be written"),
    sqlite3.SQLITE_FULL: (HistoryFault.UNWRITABLE, "cannot grow: the disk is full"),
    sqlite3.SQLITE_IOERR: (HistoryFault.UNWRITABLE, "cannot be read or written (I/O error)"),
}


def pack_ids(ids: tuple[int, ...]) -> bytes:
    """Token ids as little-endian uint32."""
    packed = array.array("I", ids)
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tobytes()


def unpack_ids(blob: bytes) -> tuple[int, ...]:
    """The inverse of `pack_ids`."""
    ids = array.array("I", blob)
    if sys.byteorder == "big":
        ids.byteswap()
    return tuple(ids)


class SqlHistory:
    """Implements `gateway.history.History`. Make it with `open`."""

    def __init__(self, engine: sa.Engine, path: Path) -> None:
        self._engine = engine
        self._path = path
        self._writer = Writer(engine)
        self._closed = False

    @classmethod
    async def open(cls, path: Path) -> SqlHistory:
        """Opens or makes the database, upgrades it, and marks cut replies as interrupted.

        Raises `HistoryError` when it is damaged, locked, unwritable or of a newer release.
        """
        history = cls(_engine(path), path)
        try:
            await history.run(_prepare)
        except BaseException:
            await history.aclose()
            raise
        return history

    async def create(self, chat: Chat, origin: ChatOrigin | None = None) -> None:
        now = time.time()

        def work(connection: sa.Connection) -> None:
            connection.execute(
                chats.insert().values(
                    id=chat.id,
                    persona_id=chat.persona_id,
                    persona_revision=chat.persona_revision,
                    persona_name=chat.persona_name,
                    preview=preview(chat.message(chat.head).text) if chat.head else "",
                    created=now,
                    updated=now,
                    **_chosen(chat),
                )
            )
            for position, message in enumerate(chat.messages):
                _insert(connection, chat.id, message, now, position)
            if origin is not None:
                connection.execute(
                    chat_files.insert().values(
                        chat=chat.id,
                        format=origin.format,
                        header=dict(origin.header),
                        lines=[dict(line) for line in origin.lines],
                        line_of=dict(origin.line_of),
                    )
                )

        await self.run(work)

    async def origin(self, chat_id: str) -> ChatOrigin | None:
        def work(connection: sa.Connection) -> ChatOrigin | None:
            stored = sa.select(chat_files).where(chat_files.c.chat == chat_id)
            row = connection.execute(stored).one_or_none()
            if row is None:
                return None
            return ChatOrigin(
                format=row.format, header=row.header, lines=tuple(row.lines), line_of=row.line_of
            )

        return await self.run(work)

    async def pin(self, chat_id: str, revision: str) -> None:
        def work(connection: sa.Connection) -> None:
            pinned = chats.update().where(chats.c.id == chat_id)
            connection.execute(pinned.values(persona_revision=revision))

        await self.run(work)

    async def load(self, chat_id: str) -> Chat | None:
        def work(connection: sa.Connection) -> Chat | None:
            row = connection.execute(sa.select(chats).where(chats.c.id == chat_id)).one_or_none()
            if row is None:
                return None
            said = sa.select(messages).where(messages.c.chat == chat_id)
            asked = sa.select(turns).where(turns.c.chat == chat_id).order_by(turns.c.created)
            records = connection.execute(asked).all()
            errors = {t.reply: Error(**t.error) for t in records if t.error}
            return Chat(
                id=row.id,
                persona_id=row.persona_id,
                persona_revision=row.persona_revision,
                persona_name=row.persona_name,
                user=row.user,
                about=row.about,
                note=_note(row.note),
                backend=row.backend,
                head=row.head,
                messages=tuple(
                    _message(m, errors.get(m.id))
                    for m in connection.execute(said.order_by(messages.c.position))
                ),
                turns=tuple(
                    TurnRecord(
                        id=t.id, request=t.request, user_message=t.user_message, reply=t.reply
                    )
                    for t in records
                ),
            )

        return await self.run(work)

    async def summaries(self) -> tuple[ChatSummary, ...]:
        def work(connection: sa.Connection) -> tuple[ChatSummary, ...]:
            newest = sa.select(chats).order_by(chats.c.updated.desc(), chats.c.id)
            return tuple(
                ChatSummary(
                    id=row.id,
                    persona_id=row.persona_id,
                    persona_name=row.persona_name,
                    user=row.user,
                    preview=row.preview,
                    updated=row.updated,
                    persona_revision=row.persona_revision,
                )
                for row in connection.execute(newest)
            )

        return await self.run(work)

    async def update(self, chat: Chat) -> None:
        def work(connection: sa.Connection) -> None:
            this = chats.update().where(chats.c.id == chat.id)
            connection.execute(this.values(**_chosen(chat)))
            for greeting in chat.greetings:
                told = messages.update().where(messages.c.id == greeting.id)
                connection.execute(told.values(text=greeting.text))
                if greeting.id == chat.head:
                    connection.execute(this.values(preview=preview(greeting.text)))

        await self.run(work)

    async def accept(
        self, chat_id: str, record: TurnRecord, user: StoredMessage, reply: StoredMessage
    ) -> None:
        now = time.time()

        def work(connection: sa.Connection) -> None:
            _insert(connection, chat_id, user, now)
            _insert(connection, chat_id, reply, now)
            connection.execute(
                turns.insert().values(
                    id=record.id,
                    chat=chat_id,
                    request=record.request,
                    user_message=record.user_message,
                    reply=record.reply,
                    created=now,
                )
            )
            connection.execute(
                chats.update()
                .where(chats.c.id == chat_id)
                .values(head=reply.id, preview=preview(user.text), updated=now)
            )

        await self.run(work)

    async def checkpoint(self, reply_id: str, text: str) -> None:
        def work(connection: sa.Connection) -> None:
            spoken = messages.update().where(messages.c.id == reply_id, messages.c.status == LIVE)
            connection.execute(spoken.values(text=text))

        await self.run(work)

    async def finish(self, reply: StoredMessage) -> None:
        now = time.time()

        def work(connection: sa.Connection) -> None:
            connection.execute(
                messages.update().where(messages.c.id == reply.id).values(**_outcome(reply))
            )
            connection.execute(
                turns.update()
                .where(turns.c.reply == reply.id)
                .values(error=asdict(reply.error) if reply.error else None, ended=now)
            )
            if reply.text:
                of = sa.select(messages.c.chat).where(messages.c.id == reply.id).scalar_subquery()
                connection.execute(
                    chats.update()
                    .where(chats.c.id == of)
                    .values(preview=preview(reply.text), updated=now)
                )

        await self.run(work)

    async def delete(self, chat_id: str, backends: Sequence[str]) -> None:
        def work(connection: sa.Connection) -> None:
            connection.execute(turns.delete().where(turns.c.chat == chat_id))
            # A message may name another as its parent: all go at once, links first.
            of_chat = messages.c.chat == chat_id
            connection.execute(messages.update().where(of_chat).values(parent=None))
            connection.execute(messages.delete().where(of_chat))
            connection.execute(chats.delete().where(chats.c.id == chat_id))
            _note_erasure(connection, f"conversation:{chat_id}", backends)

        await self.run(work)

    async def erase(self, owner: str, backends: Sequence[str]) -> None:
        await self.run(lambda connection: _note_erasure(connection, owner, backends))

    async def erasures(self, backend: str) -> tuple[tuple[int, str], ...]:
        def work(connection: sa.Connection) -> tuple[tuple[int, str], ...]:
            left = sa.select(erasures.c.number, erasures.c.owner)
            left = left.where(erasures.c.backend == backend).order_by(erasures.c.number)
            return tuple((row.number, row.owner) for row in connection.execute(left))

        return await self.run(work)

    async def erased(self, number: int) -> None:
        def work(connection: sa.Connection) -> None:
            connection.execute(erasures.delete().where(erasures.c.number == number))

        await self.run(work)

    async def check(self) -> None:
        # A commit that changes nothing would not notice a full disk; this number is free for us.
        def work(connection: sa.Connection) -> None:
            checks = connection.exec_driver_sql("PRAGMA user_version").scalar_one()
            connection.exec_driver_sql(f"PRAGMA user_version = {(checks + 1) % 2**31}")

        await self.run(work)

    async def aclose(self) -> None:
        if not self._closed:
            self._closed = True
            await self._writer.aclose()
            self._engine.dispose()

    async def run(self, work: Callable[[sa.Connection], R]) -> R:
        """Does work of its own in the database, whole or not at all. Raises `HistoryError`."""
        if self._closed:
            raise HistoryError(HistoryFault.FAILED, f"{self._path} is closed")
        try:
            return await self._writer.run(work)
        except SQLAlchemyError as error:
            _refuse(error, self._path)


def _refuse(error: SQLAlchemyError, path: Path) -> NoReturn:
    cause = error.orig if isinstance(error, DBAPIError) else None
    code = getattr(cause, "sqlite_errorcode", 0) & 0xFF  # the low byte is the primary code
    fault, what = FAULTS.get(code, (HistoryFault.FAILED, f"failed: {cause or error}"))
    raise HistoryError(fault, f"the conversations in {path}: the file {what}") from error


def _engine(path: Path) -> sa.Engine:
    # One thread owns the connection, so one connection is all there is.
    engine = sa.create_engine(
        sa.URL.create("sqlite", database=str(path)),
        poolclass=sa.pool.StaticPool,
        connect_args={"timeout": BUSY_MS / 1000, "check_same_thread": False},
    )

    @sa.event.listens_for(engine, "connect")
    def _connected(raw: sqlite3.Connection, _: object) -> None:
        raw.isolation_level = None  # transactions are begun below, not by the driver
        raw.execute("PRAGMA journal_mode=WAL")
        raw.execute("PRAGMA synchronous=FULL")
        raw.execute("PRAGMA foreign_keys=ON")

    @sa.event.listens_for(engine, "begin")
    def _begun(connection: sa.Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine


def _prepare(connection: sa.Connection) -> None:
    """Checks and upgrades the database, then settles what the last run left open."""
    verdict = connection.exec_driver_sql("PRAGMA quick_check(1)").scalar_one()
    if verdict != "ok":
        raise HistoryError(
            HistoryFault.DAMAGED, f"the database of the conversations is damaged: {verdict}"
        )
    if _revision(connection) != HEAD:
        from gateway.migrations import upgrade

        upgrade(connection)
    now = time.time()
    cut = messages.update().where(messages.c.status == LIVE)
    connection.execute(cut.values(status=MessageStatus.INTERRUPTED.value))
    connection.execute(turns.update().where(turns.c.ended.is_(None)).values(ended=now))


def _revision(connection: sa.Connection) -> str | None:
    if not sa.inspect(connection).has_table("alembic_version"):
        return None
    version = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar()
    return None if version is None else str(version)


def _insert(
    connection: sa.Connection,
    chat_id: str,
    message: StoredMessage,
    now: float,
    position: int | None = None,
) -> None:
    if position is None:
        count = sa.select(sa.func.count()).where(messages.c.chat == chat_id)
        position = connection.execute(count).scalar_one()
    connection.execute(
        messages.insert().values(
            id=message.id,
            chat=chat_id,
            position=position,
            parent=message.parent,
            turn=message.turn,
            role=message.role.value,
            name=message.name,
            created=now,
            **_outcome(message),
        )
    )


def _chosen(chat: Chat) -> dict[str, object]:
    """The columns that a person may change."""
    return {
        "user": chat.user,
        "about": chat.about,
        "note": asdict(chat.note) if chat.note else None,
        "backend": chat.backend,
        "head": chat.head,
    }


def _note(stored: dict[str, Any] | None) -> Note | None:
    return Note(stored["text"], stored["depth"], Role(stored["role"])) if stored else None


def _note_erasure(connection: sa.Connection, owner: str, backends: Sequence[str]) -> None:
    now = time.time()
    for backend in backends:
        connection.execute(erasures.insert().values(backend=backend, owner=owner, created=now))


def _outcome(message: StoredMessage) -> dict[str, object]:
    """The columns that change when a reply ends."""
    sampled = message.sampled
    return {
        "text": message.text,
        "status": message.status.value if message.status else LIVE,
        "stats": asdict(message.stats) if message.stats else None,
        "sampled_tokenizer": sampled.tokenizer if sampled else None,
        "sampled_ids": pack_ids(sampled.ids) if sampled else None,
    }


def _message(row: sa.Row[tuple[object, ...]], error: Error | None) -> StoredMessage:
    c = row._mapping
    blob = c["sampled_ids"]
    return StoredMessage(
        id=c["id"],
        parent=c["parent"],
        role=Role(c["role"]),
        name=c["name"],
        text=c["text"],
        turn=c["turn"],
        status=None if c["status"] == LIVE else MessageStatus(c["status"]),
        stats=Stats(**c["stats"]) if c["stats"] else None,
        error=error,
        sampled=None if blob is None else SampledTokens(c["sampled_tokenizer"], unpack_ids(blob)),
    )
