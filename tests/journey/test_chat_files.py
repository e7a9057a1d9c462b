"""Chats as files, in and out of a running server, over HTTP and by the command."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import aiohttp
import pytest

from gateway.cli import main
from gateway.testing import PromptedBackend, connected
from personas.chats import read_chats

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

    from gateway.app import Server

LINES = [
    {"user_name": "Sam", "character_name": "Tess", "chat_metadata": {"note_prompt": "odd"}},
    {"name": "Tess", "is_user": False, "mes": "Two?", "swipe_id": 1, "swipes": ["One?", "Two?"]},
    {"name": "System", "is_system": True, "mes": "hidden", "extra": {"a": [1]}},
    {"name": "Sam", "is_user": True, "mes": "Hi\n\u2028there", "send_date": "May 1", "extra": {}},
    {"name": "Tess", "is_user": False, "mes": "Mind the step.", "gen_started": "x"},
]
JSONL = "\n".join(json.dumps(line) for line in LINES).encode()


@pytest.fixture
async def web(server: Server) -> AsyncGenerator[aiohttp.ClientSession, None]:
    async with aiohttp.ClientSession(server.url) as session:
        yield session


async def bring(web: aiohttp.ClientSession, raw: bytes, persona: str = "tess") -> str:
    form = aiohttp.FormData(default_to_multipart=True)
    form.add_field("file", raw, filename="chat.jsonl")
    async with web.post("/v1/chats", params={"persona": persona}, data=form) as answer:
        assert answer.status == 201
        [line] = (await answer.json())["data"]
        return str(line["chat"])


async def export(web: aiohttp.ClientSession, chat: str, form: str) -> bytes:
    async with web.get(f"/v1/chats/{chat}/export", params={"format": form}) as answer:
        assert answer.status == 200
        assert answer.headers["Content-Disposition"].startswith("attachment; ")
        return await answer.read()


def lines(raw: bytes) -> list[dict[str, object]]:
    return [json.loads(line) for line in raw.decode().split("\n") if line]


async def test_sillytavern_goes_out_as_it_came(
    web: aiohttp.ClientSession, server: Server, backend: PromptedBackend
) -> None:
    """A chat of SillyTavern can be gone on with, and goes out value for value, and more."""
    chat = await bring(web, JSONL)
    assert lines(await export(web, chat, "jsonl")) == LINES
    async with connected(server.url) as client:
        await client.subscribe(chat)
        await client.say(chat, "And then?")
        backend.say("Then nothing.")
        backend.finish()
        await client.end()
    [turn] = backend.turns
    said = [message.text for message in turn.messages]
    assert said[-4:] == ["Two?", "Hi\n\u2028there", "Mind the step.", "And then?"]
    out = lines(await export(web, chat, "jsonl"))
    assert out[: len(LINES)] == LINES
    assert [line["mes"] for line in out[len(LINES) :]] == ["And then?", "Then nothing."]
    async with web.get("/v1/chats") as answer:
        [row] = (await answer.json())["data"]
    assert (row["id"], row["user"], row["preview"]) == (chat, "Sam", "Then nothing.")


async def test_survives_a_restart(web: aiohttp.ClientSession, server: Server) -> None:
    """What the file said besides is on disk, not in memory."""
    chat = await bring(web, JSONL)
    server.parts.chats._chats.clear()
    assert lines(await export(web, chat, "jsonl")) == LINES


async def test_our_own_json_is_complete(web: aiohttp.ClientSession) -> None:
    """Our JSON holds the whole tree and the file's rest, and makes the same chat again."""
    chat = await bring(web, JSONL)
    whole = await export(web, chat, "json")
    again = await bring(web, whole)
    assert again != chat
    assert lines(await export(web, again, "jsonl")) == LINES
    [read] = read_chats(whole)
    assert len(read.conversation.messages) == 4


async def test_text(web: aiohttp.ClientSession) -> None:
    """Text is what was said, by name."""
    chat = await bring(web, JSONL)
    text = (await export(web, chat, "text")).decode()
    assert text == "Tess: Two?\n\nSam: Hi\n\u2028there\n\nTess: Mind the step.\n"


async def test_refused(web: aiohttp.ClientSession) -> None:
    """A file that is no chat, a character or chat that is not there, and an odd format."""
    form = aiohttp.FormData(default_to_multipart=True)
    form.add_field("file", b'{"a": 1}', filename="x.json")
    async with web.post("/v1/chats?persona=tess", data=form) as answer:
        assert (answer.status, (await answer.json())["error"]["code"]) == (422, "bad_chat")
    async with web.post("/v1/chats?persona=nobody") as answer:
        assert (answer.status, (await answer.json())["error"]["code"]) == (404, "unknown_persona")
    async with web.get("/v1/chats/none/export") as answer:
        assert (answer.status, (await answer.json())["error"]["code"]) == (404, "unknown_chat")
    async with web.get("/v1/chats/none/export?format=pdf") as answer:
        assert answer.status == 400
    async with web.get("/v1/chats") as answer:
        assert (await answer.json())["data"] == []


async def test_command(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`greenroom chats` brings a chat, lists it, updates it, and writes it in each form."""
    file = tmp_path / "old chat.jsonl"
    await asyncio.to_thread(file.write_bytes, JSONL + b"\n{broken\n")

    async def run(*words: object) -> tuple[int, str, str]:
        argv = ["chats", *(str(word) for word in words), "--url", server.url]
        code = await asyncio.to_thread(main, argv)
        out, err = capsys.readouterr()
        # The server of this very process logs to the same place.
        told = [line for line in out.splitlines(True) if "[info" not in line]
        return code, "".join(told), err

    code, out, _ = await run("import", file, "--persona", "tess")
    assert code == 0
    chat = out.partition(":")[0]
    assert f"{chat}: 4 messages (sillytavern)" in out
    assert "bad_line" in out
    code, out, _ = await run("list")
    assert out.startswith(f"{chat}  Tess with Sam: Mind the step.")
    for form, name in (("jsonl", "a.jsonl"), ("json", "a.json"), ("text", "a.txt")):
        code, out, _ = await run("export", chat, "--as", form, "-o", tmp_path / name)
        assert (code, name in out) == (0, True)
    assert lines((tmp_path / "a.jsonl").read_bytes()) == LINES
    code, out, _ = await run("update", chat)
    assert "goes on with revision" in out
    for words, line in (
        (("export", chat, "-o", tmp_path / "a.json"), "is there already"),
        (("export", "none"), "no chat 'none'"),
        (("import", tmp_path / "none", "--persona", "tess"), "No such file"),
        (("import", file, "--persona", "tes"), "did you mean 'tess'?"),
    ):
        code, out, err = await run(*words)
        assert (code, out) == (2, "")
        assert err.count("\n") == 1
        assert line in err


def test_no_server(capsys: pytest.CaptureFixture[str]) -> None:
    """Without a server it is one line and exit code 2."""
    for url in ("http://127.0.0.1:9/", "ftp://x"):
        assert main(["chats", "list", "--url", url]) == 2
        assert capsys.readouterr().err.count("\n") == 1
