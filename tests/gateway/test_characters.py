"""gateway.characters over the real database: revisions outlive their files."""

from __future__ import annotations

import asyncio
import json
import os
from typing import TYPE_CHECKING

import pytest

import gateway.characters
from gateway.characters import Characters
from gateway.history import Chat
from gateway.sql_characters import SqlRevisions
from gateway.sql_history import SqlHistory
from personas.library import Library
from personas.persona import CardError, PersonaNotFound

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

SHIPPED = len(Library.shipped().list())


@pytest.fixture
async def history(tmp_path: Path) -> AsyncGenerator[SqlHistory, None]:
    made = await SqlHistory.open(tmp_path / "db.sqlite")
    yield made
    await made.aclose()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "personas"
    made.mkdir()
    return made


@pytest.fixture
async def characters(history: SqlHistory, folder: Path) -> Characters:
    made = Characters(Library.open(folder), SqlRevisions(history))
    await made.open()
    return made


def card(**data: object) -> bytes:
    fields = {"name": "Ada", "description": "Mends \ud800clocks 🕰."} | data
    return json.dumps({"spec": "chara_card_v3", "spec_version": "3.0", "data": fields}).encode()


def chat(persona: str, revision: str) -> Chat:
    return Chat(
        id=f"c-{revision}",
        persona_id=persona,
        persona_revision=revision,
        persona_name="Ada",
        user="Ann",
    )


async def test_every_revision_is_kept(characters: Characters, folder: Path) -> None:
    """A character reads from the database as it was read from its file, in each revision."""
    first = (await characters.add(card(), "ada.json")).entry.persona
    (folder / "ada.json").write_bytes(card(description="Newer."))
    assert (await characters.look()).changed == ("ada",)
    newest = characters.library.get("ada")
    assert newest.revision != first.revision
    assert await characters.at("ada", newest.revision) is newest
    assert await characters.at("ada", first.revision) == first
    assert await characters.at("ada", first.revision) is await characters.at("ada", first.revision)
    listed = await characters.revisions.of("ada")
    assert [r.revision for r in listed] == [newest.revision, first.revision]
    assert listed[0].added >= listed[1].added


async def test_stored_once(characters: Characters, history: SqlHistory, folder: Path) -> None:
    """A second start with the same characters stores nothing."""
    again = SqlRevisions(history)
    assert await again.keep(Library.open(folder).list()) == 0
    assert len(await again.of("maren")) == 1
    assert await again.keep([]) == 0


async def test_unknown_revision(characters: Characters) -> None:
    """A chat whose revision was never kept goes on with the newest; asked by name it is unknown."""
    assert (await characters.of_chat("maren", "gone")).id == "maren"
    for persona in ("maren", "nobody"):
        with pytest.raises(PersonaNotFound):
            await characters.at(persona, "gone")
    with pytest.raises(PersonaNotFound):
        await characters.of_chat("nobody", "gone")


async def test_remove(characters: Characters, history: SqlHistory, folder: Path) -> None:
    """A deleted character stays for the chats that have it; other revisions of it are forgotten."""
    first = (await characters.add(card(), "ada.json")).entry.persona
    await characters.add(card(description="Newer."), "ada.json", replace_id="ada")
    await history.create(chat("ada", first.revision))
    await characters.remove("ada")
    assert not (folder / "ada.json").exists()
    assert (await characters.of_chat("ada", first.revision)).name == "Ada"
    assert [r.revision for r in await characters.revisions.of("ada")] == [first.revision]
    with pytest.raises(PersonaNotFound):
        characters.library.get("ada")
    with pytest.raises(CardError):
        await characters.remove("maren")
    assert await characters.revisions.of("maren")


async def test_follow(
    characters: Characters, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files that come and go are seen without a restart, also after the folder was away."""
    monkeypatch.setattr(gateway.characters, "LOOK_EVERY", 0.01)
    following = asyncio.create_task(characters.follow())

    async def until(count: int) -> None:
        async with asyncio.timeout(10):
            while len(characters.library.list()) != SHIPPED + count:  # noqa: ASYNC110 - polls
                await asyncio.sleep(0.01)

    (folder / "ada.json").write_bytes(card())
    await until(1)
    async with asyncio.timeout(10):
        while not await characters.revisions.of("ada"):  # noqa: ASYNC110 - polls
            await asyncio.sleep(0.01)
    os.rename(folder, tmp_path / "away")
    await asyncio.sleep(0.05)
    await until(1)  # what is not there cannot be looked at; nothing is lost
    os.rename(tmp_path / "away", folder)
    (folder / "bea.json").write_bytes(card(name="Bea"))
    await until(2)
    (folder / "ada.json").unlink()
    await until(1)
    following.cancel()
    with pytest.raises(asyncio.CancelledError):
        await following
