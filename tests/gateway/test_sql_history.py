"""gateway.sql_history: what was written is there, whatever happened in between."""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa
from alembic import command
from hypothesis import given
from hypothesis import strategies as st

from backends.api import Role, SampledTokens
from gateway.errors import HistoryError, HistoryFault
from gateway.history import Chat, ChatOrigin, StoredMessage, TurnRecord, preview
from gateway.migrations import settings as alembic_settings
from gateway.protocol import Error, MessageStatus, Stats
from gateway.schema import HEAD, metadata
from gateway.sql_history import SqlHistory, pack_ids, unpack_ids
from personas.persona import Note

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

STATS = Stats(
    ttft_ms=12.5,
    tokens_per_s=90.0,
    prompt_tokens=300,
    cached_tokens=280,
    completion_tokens=20,
    cached_by_tier={"host": 200, "disk": 80},
    miss="new_text",
    backend="scripted",
)


ORIGIN = ChatOrigin(
    format="sillytavern",
    header={"user_name": "Ann", "chat_metadata": {"a": [1, None]}},
    lines=({"mes": "Mind the step.", "extra": {}}, {"mes": "hidden", "is_system": True}),
    line_of={"c1-m0": 0},
)


def greeting(chat: str) -> StoredMessage:
    return StoredMessage(
        id=f"{chat}-m0", parent=None, role=Role.ASSISTANT, name="Mira", text="Mind the step."
    )


def new_chat(name: str = "c1") -> Chat:
    first = greeting(name)
    return Chat(
        id=name,
        persona_id="mira",
        persona_revision="r1",
        persona_name="Mira",
        user="Ann",
        head=first.id,
        messages=(first,),
    )


def new_turn(chat: Chat, n: int) -> tuple[TurnRecord, StoredMessage, StoredMessage]:
    record = TurnRecord(
        id=f"{chat.id}-t{n}",
        request=f"r{n}",
        user_message=f"{chat.id}-u{n}",
        reply=f"{chat.id}-a{n}",
    )
    user = StoredMessage(
        id=record.user_message,
        parent=chat.head,
        role=Role.USER,
        name="Ann",
        text=f"Question {n} 🚪",
        turn=record.id,
    )
    reply = StoredMessage(
        id=record.reply,
        parent=user.id,
        role=Role.ASSISTANT,
        name="Mira",
        text="",
        turn=record.id,
        status=None,
    )
    return record, user, reply


@pytest.fixture
async def history(tmp_path: Path) -> AsyncGenerator[SqlHistory, None]:
    made = await SqlHistory.open(tmp_path / "db.sqlite")
    yield made
    await made.aclose()


async def test_round_trip(history: SqlHistory) -> None:
    """A chat with a finished turn reads back equal, sampled ids and stats included."""
    chat = new_chat()
    await history.create(chat)
    record, user, reply = new_turn(chat, 1)
    await history.accept(chat.id, record, user, reply)
    chat = chat.accept(record, user, reply)
    assert await history.load(chat.id) == chat
    done = replace(
        reply,
        text="Answer.",
        status=MessageStatus.COMPLETE,
        stats=STATS,
        sampled=SampledTokens("gemma", (2, 70000, 262143)),
    )
    await history.finish(done)
    assert await history.load(chat.id) == chat.settle(done)
    assert await history.load("nobody") is None


async def test_origin(history: SqlHistory) -> None:
    """What an imported chat's file said besides is kept with the chat; others have none."""
    await history.create(new_chat("c1"), ORIGIN)
    await history.create(new_chat("c2"))
    assert await history.origin("c1") == ORIGIN
    assert await history.origin("c2") is await history.origin("none") is None


async def test_pin(history: SqlHistory) -> None:
    """A chat goes on with another revision; other chats stay with theirs."""
    for name in ("c1", "c2"):
        await history.create(new_chat(name))
    await history.pin("c1", "r2")
    assert await history.load("c1") == replace(new_chat("c1"), persona_revision="r2")
    revisions = {c.id: c.persona_revision for c in await history.summaries()}
    assert revisions == {"c1": "r2", "c2": "r1"}


async def test_restart_interrupts(tmp_path: Path) -> None:
    """A reply that was live when the process ended is interrupted and keeps its checkpoint."""
    first = await SqlHistory.open(tmp_path / "db.sqlite")
    chat = new_chat()
    await first.create(chat)
    record, user, reply = new_turn(chat, 1)
    await first.accept(chat.id, record, user, reply)
    await first.checkpoint(reply.id, "Half an ans")
    await first.aclose()
    second = await SqlHistory.open(tmp_path / "db.sqlite")
    loaded = await second.load(chat.id)
    assert loaded
    kept = loaded.message(reply.id)
    assert (kept.text, kept.status) == ("Half an ans", MessageStatus.INTERRUPTED)
    await second.checkpoint(reply.id, "too late")
    again = await second.load(chat.id)
    assert again == loaded
    await second.aclose()


async def test_request_is_unique_in_its_chat(history: SqlHistory) -> None:
    """A second turn of the same request is refused and leaves nothing behind."""
    chat = new_chat()
    await history.create(chat)
    record, user, reply = new_turn(chat, 1)
    await history.accept(chat.id, record, user, reply)
    twin, user2, reply2 = new_turn(replace(chat, head=reply.id), 2)
    with pytest.raises(HistoryError):
        await history.accept(chat.id, replace(twin, request=record.request), user2, reply2)
    assert await history.load(chat.id) == chat.accept(record, user, reply)


async def test_summaries_newest_first(history: SqlHistory) -> None:
    """Chats are listed by their last change, with the beginning of the last text."""
    for name in ("c1", "c2"):
        await history.create(new_chat(name))
    chat = new_chat("c1")
    record, user, reply = new_turn(chat, 1)
    await history.accept("c1", record, user, reply)
    assert [(s.id, s.preview) for s in await history.summaries()] == [
        ("c1", user.text),
        ("c2", "Mind the step."),
    ]
    await history.finish(replace(reply, text="So  it\nis.", status=MessageStatus.CANCELLED))
    assert (await history.summaries())[0].preview == "So it is."


async def test_errors_are_kept(history: SqlHistory, tmp_path: Path) -> None:
    """Why a turn failed is kept with the turn, and comes back with its reply."""
    chat = new_chat()
    await history.create(chat)
    record, user, reply = new_turn(chat, 1)
    await history.accept(chat.id, record, user, reply)
    error = Error(
        code="crashed",
        message="the engine died",
        retryable=True,
        retry_after_ms=200,
        detail={"needed": 7, "nearest": None},
    )
    failed = replace(reply, status=MessageStatus.FAILED, error=error)
    await history.finish(failed)
    assert await history.load(chat.id) == chat.accept(record, user, reply).settle(failed)
    with sqlite3.connect(tmp_path / "db.sqlite") as raw:
        [stored] = raw.execute("SELECT error FROM turns").fetchone()
    raw.close()
    assert '"crashed"' in stored


async def test_many_writers_one_commit_at_a_time(history: SqlHistory) -> None:
    """Writes from many tasks all land, in their own chats."""
    chats = [new_chat(f"c{n}") for n in range(40)]
    await asyncio.gather(*(history.create(chat) for chat in chats))
    for chat in chats:
        assert await history.load(chat.id) == chat


async def test_one_bad_job_spares_its_batch(history: SqlHistory) -> None:
    """A write that fails does not take those with it that were committed together."""
    jobs = [history.create(new_chat("c1")), history.create(new_chat("c1"))]
    jobs += [history.create(new_chat("c2")), history.check()]
    results = await asyncio.gather(*jobs, return_exceptions=True)
    assert [isinstance(r, HistoryError) for r in results] == [False, True, False, False]
    assert {s.id for s in await history.summaries()} == {"c1", "c2"}


async def test_check_writes(history: SqlHistory, tmp_path: Path) -> None:
    """The health check commits a change, so a disk that is full fails it."""
    await history.check()
    await history.check()
    with sqlite3.connect(tmp_path / "db.sqlite") as raw:
        assert raw.execute("PRAGMA user_version").fetchone() == (2,)
    raw.close()


async def test_durable_settings(history: SqlHistory) -> None:
    """The database runs with WAL, full fsync and foreign keys."""

    def read(connection: sa.Connection) -> list[object]:
        names = ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        return [connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in names]

    assert await history.run(read) == ["wal", 2, 1, 5000]


async def test_closed(tmp_path: Path) -> None:
    """Closing twice is harmless; writing afterwards is a HistoryError."""
    made = await SqlHistory.open(tmp_path / "db.sqlite")
    await made.aclose()
    await made.aclose()
    with pytest.raises(HistoryError):
        await made.check()


async def test_not_a_database(tmp_path: Path) -> None:
    """A file of other bytes is DAMAGED and stays as it was."""
    path = tmp_path / "db.sqlite"
    path.write_bytes(b"this is no database " * 500)
    with pytest.raises(HistoryError) as caught:
        await SqlHistory.open(path)
    assert caught.value.fault is HistoryFault.DAMAGED
    assert str(path) in caught.value.message
    assert path.read_bytes() == b"this is no database " * 500


async def test_damaged_pages(tmp_path: Path) -> None:
    """Pages that were overwritten are found at start."""
    path = tmp_path / "db.sqlite"
    made = await SqlHistory.open(path)
    for n in range(50):
        await made.create(new_chat(f"c{n}"))
    await made.aclose()
    data = bytearray(path.read_bytes())
    for page in range(1, len(data) // 4096):
        data[page * 4096 : page * 4096 + 64] = os.urandom(64)
    path.write_bytes(data)
    with pytest.raises(HistoryError) as caught:
        await SqlHistory.open(path)
    assert caught.value.fault is HistoryFault.DAMAGED


async def test_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A database that another process is writing to is LOCKED, after the busy timeout."""
    monkeypatch.setattr("gateway.sql_history.BUSY_MS", 50)
    path = tmp_path / "db.sqlite"
    await (await SqlHistory.open(path)).aclose()
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(HistoryError) as caught:
        await SqlHistory.open(path)
    assert caught.value.fault is HistoryFault.LOCKED
    other.close()


async def test_cannot_open(tmp_path: Path) -> None:
    """A path that cannot be a file is UNWRITABLE."""
    path = tmp_path / "db.sqlite"
    path.mkdir()
    with pytest.raises(HistoryError) as caught:
        await SqlHistory.open(path)
    assert caught.value.fault is HistoryFault.UNWRITABLE


async def test_newer_release(tmp_path: Path) -> None:
    """A database of a revision that we do not know is refused and not touched."""
    path = tmp_path / "db.sqlite"
    await (await SqlHistory.open(path)).aclose()
    with sqlite3.connect(path) as raw:
        raw.execute("UPDATE alembic_version SET version_num = '9999'")
    raw.close()
    with pytest.raises(HistoryError) as caught:
        await SqlHistory.open(path)
    assert caught.value.fault is HistoryFault.NEWER


async def test_migrations_lead_to_the_schema(tmp_path: Path) -> None:
    """The revisions end at HEAD and make exactly the tables that the code uses."""
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext
    from alembic.script import ScriptDirectory

    from gateway.migrations import settings

    assert ScriptDirectory.from_config(settings()).get_current_head() == HEAD
    path = tmp_path / "db.sqlite"
    await (await SqlHistory.open(path)).aclose()
    engine = sa.create_engine(f"sqlite:///{path}", poolclass=sa.pool.NullPool)
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
    engine.dispose()


async def test_what_a_person_changes(tmp_path: Path) -> None:
    """Another greeting, its new words, the note and the person are there after a restart."""
    path = tmp_path / "db.sqlite"
    history = await SqlHistory.open(path)
    chat = new_chat()
    other = replace(greeting("c1"), id="c1-m1", text="You again, Ann?")
    chat = replace(chat, messages=(*chat.messages, other), about="a miller")
    await history.create(chat)
    assert await history.load("c1") == chat
    first, second = chat.messages
    renamed = replace(second, text="You again, Bea?")
    changed = replace(
        chat,
        user="Bea",
        about="",
        note=Note("Be dry.", 0, Role.ASSISTANT),
        head=second.id,
        messages=(first, renamed),
    )
    await history.update(changed)
    await history.aclose()
    history = await SqlHistory.open(path)
    assert await history.load("c1") == changed
    [line] = await history.summaries()
    assert (line.user, line.preview) == ("Bea", "You again, Bea?")
    # Later greetings are no business of a chat that goes on: its preview stays.
    record, user, reply = new_turn(changed, 1)
    await history.accept("c1", record, user, reply)
    begun = replace(changed.accept(record, user, reply), note=None)
    await history.update(begun)
    [line] = await history.summaries()
    assert line.preview == preview(user.text)
    stored = await history.load("c1")
    assert stored is not None
    assert (stored.note, stored.head, stored.greetings) == (None, reply.id, ())
    await history.aclose()


@given(st.lists(st.integers(0, 2**32 - 1)).map(tuple))
def test_ids_survive(ids: tuple[int, ...]) -> None:
    """Token ids take four bytes each and come back."""
    assert unpack_ids(pack_ids(ids)) == ids
    assert len(pack_ids(ids)) == 4 * len(ids)


@given(st.text())
def test_preview_is_one_short_line(text: str) -> None:
    """A preview has one line and at most 120 characters."""
    assert len(preview(text)) <= 120
    assert "\n" not in preview(text)


async def test_upgrade_keeps_chats(tmp_path: Path) -> None:
    """A database of the first schema is upgraded with its chats, which have chosen no backend."""
    path = tmp_path / "old.sqlite"
    engine = sa.create_engine(f"sqlite:///{path}")
    with engine.begin() as connection:
        old = alembic_settings()
        old.attributes["connection"] = connection
        command.upgrade(old, "0001")
        connection.exec_driver_sql(
            "INSERT INTO chats (id, persona_id, persona_revision, persona_name, user, preview,"
            " created, updated) VALUES ('c_1', 'maren', 'r', 'Maren', 'You', '', 1, 1)"
        )
        old_stats = asdict(replace(STATS, prompt_tokens=3))
        del old_stats["backend"]
        connection.execute(
            sa.text(
                "INSERT INTO messages (id, chat, position, role, name, text, status, stats,"
                " created) VALUES ('m_1', 'c_1', 0, 'assistant', 'Maren', 'Mind the step.',"
                " 'complete', :stats, 1)"
            ),
            {"stats": json.dumps(old_stats)},
        )
        connection.exec_driver_sql("UPDATE chats SET head = 'm_1'")
    engine.dispose()
    history = await SqlHistory.open(path)
    chat = await history.load("c_1")
    assert chat is not None
    assert (chat.persona_id, chat.persona_revision, chat.backend) == ("maren", "r", "")
    assert await history.origin("c_1") is None
    await history.create(new_chat(), ORIGIN)  # what the third schema brought is there
    assert await history.origin("c1") == ORIGIN
    [first] = chat.messages
    assert (first.text, first.error) == ("Mind the step.", None)
    assert first.stats is not None
    assert (first.stats.prompt_tokens, first.stats.backend) == (3, "")
    assert (chat.about, chat.note) == ("", None)
    changed = replace(chat, backend="scripted", about="a miller", note=Note("Be dry.", 2))
    await history.update(changed)
    assert await history.load("c_1") == changed
    await history.aclose()
