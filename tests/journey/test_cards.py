"""Characters of a running server: brought, talked with at once, exported, changed and removed."""

from __future__ import annotations

import asyncio
import json
import zipfile
from dataclasses import replace
from io import BytesIO
from typing import TYPE_CHECKING

import aiohttp
import pytest
import sqlalchemy as sa
from alembic import command
from yarl import URL

import gateway.characters
from gateway.app import serve
from gateway.migrations import settings as alembic_settings
from gateway.protocol import ChatOpen
from gateway.testing import PromptedBackend, connected
from personas.importer import ImportedCard, read_any
from tests.personas import makers

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

    from gateway.app import Server
    from gateway.config import Config

BOOK = b'{"entries": {"0": {"key": ["x"], "content": "y"}}}'


@pytest.fixture
async def web(server: Server) -> AsyncGenerator[aiohttp.ClientSession, None]:
    async with aiohttp.ClientSession(server.url) as session:
        yield session


def form(*files: tuple[str, bytes]) -> aiohttp.FormData:
    made = aiohttp.FormData(default_to_multipart=True)
    for name, raw in files:
        made.add_field("file", raw, filename=name)
    return made


async def listed(web: aiohttp.ClientSession, query: str = "") -> list[str]:
    async with web.get("/v1/personas" + query) as answer:
        return [persona["id"] for persona in (await answer.json())["data"]]


def reply(backend: PromptedBackend, text: str) -> None:
    backend.say(text)
    backend.finish()


async def test_brought_and_talked_with(
    web: aiohttp.ClientSession, server: Server, backend: PromptedBackend
) -> None:
    """An uploaded PNG is a character with a picture, a report, and a voice at once."""
    raw = makers.png(makers.text(makers.card(tags=7, mood="odd")), end=b"more")
    async with web.post("/v1/personas", data=form(("Ada.png", raw))) as answer:
        assert answer.status == 201
        [line] = (await answer.json())["data"]
    assert (line["file"], line["state"], line["container"]) == ("Ada.png", "added", "png")
    persona = line["persona"]
    assert (persona["id"], persona["name"], persona["own"]) == ("ada", "Ada", True)
    assert "data.tags" in line["report"]["dropped"]
    assert "data.mood" in line["report"]["preserved"]
    assert (
        any(finding["code"] == "trailing_bytes" for finding in line["findings"]) or line["findings"]
    )
    async with web.get(persona["avatar"]) as answer:
        assert answer.content_type == "image/png"
        assert b"ccv3" not in await answer.read()
    async with connected(server.url) as client:
        chat = await client.open("ada")
        assert chat.messages[0].text == "Tick?"
        await client.say(chat.chat, "Hi")
        reply(backend, "Tock.")
        await client.end()
    assert "Clocks." in backend.turns[0].messages[0].text
    async with web.get("/v1/personas/ada/report") as answer:
        told = await answer.json()
    assert told["report"] == line["report"]
    assert told["revision"] == persona["revision"]


async def test_several_files(web: aiohttp.ClientSession) -> None:
    """Each file of a request has its own outcome; one good one is enough for 201."""
    files = form(("a.json", makers.card()), ("b.json", b"{"), ("c.json", makers.card(name="Bea")))
    async with web.post("/v1/personas", data=files) as answer:
        assert answer.status == 201
        lines = (await answer.json())["data"]
    assert [line["state"] for line in lines] == ["added", "refused", "added"]
    assert lines[1]["error"]["code"] == "bad_json"
    async with web.post("/v1/personas", data=form(("a.json", makers.card()))) as answer:
        assert answer.status == 200
        assert (await answer.json())["data"][0]["state"] == "unchanged"
    async with web.post("/v1/personas", data=form(("m.json", makers.card(name="Maren")))) as answer:
        assert (await answer.json())["data"][0]["persona"]["id"] == "maren-2"


@pytest.mark.parametrize(
    ("name", "raw", "status", "code"),
    [
        ("a.json", b"{", 422, "bad_json"),
        ("a.json", b"", 422, "empty"),
        ("a.json", b'{"a": 1}', 422, "not_a_card"),
        ("a.json", BOOK, 422, "no_character"),
        ("a.json", b'{"name": ' + b"[" * 99, 413, "too_deep"),
        ("a.png", b"<!doctype html>", 415, "html_page"),
        ("a.gif", b"GIF89a", 415, "unsupported"),
        ("a.png", makers.png(), 415, "no_card"),
        ("a.png", makers.png(makers.chunk(b"tEXt", b"chara\0rcc||rccv1||x")), 415, "encrypted"),
        (
            "a.png",
            makers.png(makers.text(makers.card()), width=60000, height=60000),
            413,
            "too_many_pixels",
        ),
    ],
)
async def test_refused(
    web: aiohttp.ClientSession, server: Server, name: str, raw: bytes, status: int, code: str
) -> None:
    """What cannot be read is refused by a code and its kind of status; nothing is left of it."""
    before = await listed(web)
    async with web.post("/v1/personas", data=form((name, raw))) as answer:
        assert answer.status == status
        told = await answer.json()
    assert told["error"]["code"] == code
    assert told["error"]["message"]
    assert [line["state"] for line in told["data"]] == ["refused"]
    assert await listed(web) == before
    folder = server.parts.folder
    assert sorted(path.name for path in (folder / "personas").iterdir()) == ["tess.json"]
    assert [*(folder / "incoming").iterdir()] == []


async def test_too_large_is_not_kept(config: Config, backend: PromptedBackend) -> None:
    """A file over the limit is 413 without being read; the next one of the request is taken."""
    small = replace(config, cards=replace(config.cards, file_bytes=200_000))
    server = await serve(small, backend=backend)
    try:
        async with aiohttp.ClientSession(server.url) as web:
            big = ("big.json", b" " * 200_001)
            files = form(big, ("a.json", makers.card()))
            async with web.post("/v1/personas", data=files) as answer:
                assert answer.status == 201
                refused, taken = (await answer.json())["data"]
            assert (refused["error"]["code"], taken["state"]) == ("too_large", "added")
            async with web.post("/v1/personas", data=form(big)) as answer:
                assert answer.status == 413
    finally:
        await server.stop()


async def test_no_multipart(web: aiohttp.ClientSession) -> None:
    """A body that is no form with a file in it is refused by name."""
    for body, headers, status, code in (
        (makers.card(), {"Content-Type": "application/json"}, 415, "not_multipart"),
        (b"x", {"Content-Type": "multipart/form-data"}, 422, "bad_multipart"),
        (b"nothing", {"Content-Type": "multipart/form-data; boundary=b"}, 422, "bad_multipart"),
    ):
        async with web.post("/v1/personas", data=body, headers=headers) as answer:
            assert answer.status == status
            assert (await answer.json())["error"]["code"] == code
    field = aiohttp.FormData(default_to_multipart=True)
    field.add_field("note", "no file")
    for ask in (web.post("/v1/personas", data=field), web.put("/v1/personas/ada", data=field)):
        async with ask as answer:
            assert answer.status == 422
            assert (await answer.json())["error"]["code"] == "no_file"


async def test_odd_ids(web: aiohttp.ClientSession, server: Server) -> None:
    """An id that is no slug is refused; nothing is written or read outside the folder."""
    for path in ("..%2F..%2Fescaped", "..%2Ftess", "a%00b", "A"):
        url = URL(f"{server.url}v1/personas/{path}", encoded=True)
        async with web.put(url, data=form(("a.json", makers.card()))) as answer:
            assert answer.status in (400, 422)
        for ask in (web.get(url / "avatar"), web.get(url / "export"), web.delete(url)):
            async with ask as answer:
                assert answer.status in (400, 404)
    assert not [*server.parts.folder.parent.rglob("escaped*")]


async def test_foreign_page(web: aiohttp.ClientSession) -> None:
    """A page of another site can neither bring nor change nor delete."""
    headers = {"Origin": "https://evil.example"}
    data = form(("a.json", makers.card()))
    async with web.post("/v1/personas", data=data, headers=headers) as answer:
        assert answer.status == 403
    async with web.put("/v1/personas/tess", headers=headers) as answer:
        assert answer.status == 403
    async with web.delete("/v1/personas/tess", headers=headers) as answer:
        assert answer.status == 403
    async with web.put("/v1/chats/c/revision", headers=headers) as answer:
        assert answer.status == 403
    assert "tess" in await listed(web)


@pytest.mark.parametrize("form_name", ["v2", "v3", "png", "charx"])
async def test_export(web: aiohttp.ClientSession, form_name: str) -> None:
    """An exported character is the one that was brought, saved under its id."""
    raw = makers.png(makers.text(makers.card(name="Zoë", mood="odd")))
    async with web.post("/v1/personas", data=form(("x.png", raw))) as answer:
        [line] = (await answer.json())["data"]
    path = f"/v1/personas/{line['persona']['id']}/export"
    async with web.get(path, params={"format": form_name}) as answer:
        assert answer.status == 200
        said = answer.headers["Content-Disposition"]
        assert said.startswith("attachment; ")
        assert "zo%C3%AB." in said
        again = read_any(await answer.read())
    assert isinstance(again, ImportedCard)
    assert again.persona.name == "Zoë"
    if form_name == "charx":
        assert again.avatar is not None


async def test_export_refused(web: aiohttp.ClientSession) -> None:
    """A format we do not write is 400; a character or revision we do not have is 404."""
    for path, status in (
        ("/v1/personas/tess/export?format=webp", 400),
        ("/v1/personas/nobody/export", 404),
        ("/v1/personas/tess/export?revision=none", 404),
        ("/v1/personas/nobody/report", 404),
        ("/v1/personas/nobody/revisions", 404),
    ):
        async with web.get(path) as answer:
            assert answer.status == status
            assert (await answer.json())["error"]["code"]


async def test_charx_keeps_its_files(web: aiohttp.ClientSession) -> None:
    """What came in an archive goes out in one."""
    files = {"card.json": makers.card(), "assets/other/x/a.bin": b"abc"}
    async with web.post("/v1/personas", data=form(("a.charx", makers.archive(files)))) as answer:
        assert answer.status == 201
    async with web.get("/v1/personas/ada/export?format=charx") as answer:
        archive = zipfile.ZipFile(BytesIO(await answer.read()))
    assert archive.read("assets/other/x/a.bin") == b"abc"


async def test_lorebook(
    web: aiohttp.ClientSession, server: Server, backend: PromptedBackend
) -> None:
    """A lorebook that came alone is in the prompts of the character it is given to."""
    world = b'{"entries": {"0": {"key": ["river"], "content": "The river is deep."}}}'
    async with web.post("/v1/personas/tess/lorebook", data=form(("w.json", world))) as answer:
        assert answer.status == 200
        [line] = (await answer.json())["data"]
    assert line["state"] == "replaced"
    async with connected(server.url) as client:
        chat = await client.open("tess")
        await client.say(chat.chat, "What about the river?")
        reply(backend, "Wet.")
        await client.end()
    assert "The river is deep." in [message.text for message in backend.turns[0].messages]
    for path, raw, status in (
        ("/v1/personas/tess/lorebook", makers.card(), 422),
        ("/v1/personas/nobody/lorebook", world, 404),
    ):
        async with web.post(path, data=form(("w.json", raw))) as answer:
            assert answer.status == status


async def test_search(web: aiohttp.ClientSession) -> None:
    """The list can be searched, and says which tags there are."""
    assert await listed(web, "?q=opens&tag=DRY") == ["tess"]
    assert await listed(web, "?q=zzz") == []
    async with web.get("/v1/personas") as answer:
        assert (await answer.json())["tags"]["dry"] == 1


async def test_hot_folder(web: aiohttp.ClientSession, server: Server, config_folder: Path) -> None:
    """A file of the folder that changes, breaks or goes is seen; a broken one is named."""
    file = config_folder / "bea.json"
    file.write_bytes(makers.card(name="Bea"))
    await server.parts.characters.look()
    assert "bea" in await listed(web)
    file.write_bytes(b"{")
    await server.parts.characters.look()
    async with web.get("/v1/personas") as answer:
        body = await answer.json()
    assert "bea" in [persona["id"] for persona in body["data"]]
    [trouble] = body["troubles"]
    assert (trouble["file"], trouble["code"], trouble["kept"]) == ("bea.json", "bad_json", True)
    file.unlink()
    await server.parts.characters.look()
    assert "bea" not in await listed(web)


async def test_watched_without_asking(
    server: Server, config_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The running server looks by itself."""
    found = asyncio.Event()

    async def look() -> None:
        found.set()

    monkeypatch.setattr(gateway.characters, "LOOK_EVERY", 0.01)
    monkeypatch.setattr(server.parts.characters, "look", look)
    async with asyncio.timeout(10):
        await found.wait()


async def test_chat_stays_with_its_revision(
    web: aiohttp.ClientSession, server: Server, backend: PromptedBackend
) -> None:
    """A chat goes on as it began until it is moved; a deleted character goes on too."""
    async with web.put("/v1/personas/ada", data=form(("a.json", makers.card()))) as answer:
        assert answer.status == 201
    async with connected(server.url) as client:
        chat = await client.open("ada")

        async def prompted() -> str:
            await client.say(chat.chat, "Hi")
            reply(backend, "Tock.")
            await client.end()
            return backend.turns[-1].messages[0].text

        assert "Clocks." in await prompted()
        newer = form(("a.json", makers.card(description="Newer.")))
        async with web.put("/v1/personas/ada", data=newer) as answer:
            assert (await answer.json())["data"][0]["state"] == "replaced"
        assert "Clocks." in await prompted()
        async with web.get("/v1/chats") as answer:
            assert (await answer.json())["data"][0]["newer"] is True
        async with web.get("/v1/personas/ada/revisions") as answer:
            newest, first = [r["revision"] for r in (await answer.json())["data"]]
        async with web.put(f"/v1/chats/{chat.chat}/revision") as answer:
            assert await answer.json() == {"chat": chat.chat, "revision": newest}
        assert "Newer." in await prompted()
        path = f"/v1/chats/{chat.chat}/revision?revision={first}"
        async with web.put(path) as answer:
            assert (await answer.json())["revision"] == first
        async with web.get(f"/v1/personas/ada/export?revision={first}") as answer:
            assert json.loads(await answer.read())["data"]["description"] == "Clocks."
        async with web.delete("/v1/personas/ada") as answer:
            assert answer.status == 204
        assert "Clocks." in await prompted()
        refused = await client.refused(ChatOpen(id="r", persona="ada", user="You"))
        assert refused.code == "unknown_persona"


async def test_pin_refused(
    web: aiohttp.ClientSession, server: Server, backend: PromptedBackend
) -> None:
    """An unknown chat or revision is 404, a chat that is speaking 409."""
    async with web.put("/v1/chats/none/revision") as answer:
        assert answer.status == 404
    async with connected(server.url) as client:
        chat = await client.open("tess")
        async with web.put(f"/v1/chats/{chat.chat}/revision?revision=none") as answer:
            assert answer.status == 404
        await client.say(chat.chat, "Hi")
        async with web.put(f"/v1/chats/{chat.chat}/revision") as answer:
            assert answer.status == 409
            assert (await answer.json())["error"]["code"] == "turn_in_progress"
        reply(backend, "Yes.")
        await client.end()


async def test_remove(web: aiohttp.ClientSession) -> None:
    """One's own can be deleted; shipped ones and those that are not there cannot."""
    for path, status in (
        ("/v1/personas/tess", 204),
        ("/v1/personas/tess", 404),
        ("/v1/personas/maren", 409),
    ):
        async with web.delete(path) as answer:
            assert answer.status == status
    assert "maren" in await listed(web)


async def test_chats_of_an_older_release(config: Config, backend: PromptedBackend) -> None:
    """A chat from before there were revisions goes on with the character as it is now."""
    path = config.data.folder / "conversations.sqlite"
    engine = sa.create_engine(f"sqlite:///{path}")
    with engine.begin() as connection:
        old = alembic_settings()
        old.attributes["connection"] = connection
        command.upgrade(old, "0002")
        connection.exec_driver_sql(
            "INSERT INTO chats (id, persona_id, persona_revision, persona_name, user, preview,"
            " created, updated) VALUES ('c_1', 'tess', 'lost', 'Tess', 'You', '', 1, 1)"
        )
        connection.exec_driver_sql(
            "INSERT INTO messages (id, chat, position, role, name, text, status, created)"
            " VALUES ('m_1', 'c_1', 0, 'assistant', 'Tess', 'Mind the step.', 'complete', 1)"
        )
        connection.exec_driver_sql("UPDATE chats SET head = 'm_1'")
    engine.dispose()
    server = await serve(config, backend=backend)
    try:
        async with connected(server.url) as client:
            await client.subscribe("c_1")
            await client.say("c_1", "Which one?")
            reply(backend, "The third.")
            await client.end()
        said = [message.text for message in backend.turns[0].messages]
        assert "Tess tests doors" in said[0]
        assert said[-2:] == ["Mind the step.", "Which one?"]
        async with aiohttp.ClientSession(server.url) as web:
            async with web.get("/v1/chats") as answer:
                assert (await answer.json())["data"][0]["newer"] is True
            async with web.put("/v1/chats/c_1/revision") as answer:
                assert answer.status == 200
            async with web.get("/v1/chats") as answer:
                assert (await answer.json())["data"][0]["newer"] is False
    finally:
        await server.stop()
