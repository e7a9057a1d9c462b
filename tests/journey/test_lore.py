"""A chat with a lorebook: what the backend is asked, the trace a person can fetch, a restart."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import aiohttp

from backends.api import Role
from gateway.app import serve
from gateway.protocol import ChatOpen, ChatSnapshot, TurnDone
from gateway.testing import PromptedBackend, connected

if TYPE_CHECKING:
    from pathlib import Path

    from gateway.app import Server
    from gateway.config import Config

CARD = {
    "spec": "chara_card_v3",
    "spec_version": "3.0",
    "data": {
        "name": "Wren",
        "description": "{{char}} keeps a mill.",
        "first_mes": "Mind the wheel, {{user}}.",
        "alternate_greetings": ["Flour or gossip?"],
        "character_book": {
            "entries": [
                {"keys": ["wheel"], "content": "The wheel is of oak.", "insertion_order": 1},
                {"keys": ["flood"], "content": "In the flood {{char}} rang the bell."},
                {"keys": ["flood"], "content": "@@dont_activate\nnever", "name": "barred"},
            ]
        },
    },
}


def write(config: Config) -> None:
    path = config.data.folder / "personas" / "wren.json"
    path.write_text(json.dumps(CARD), encoding="utf-8")


async def trace(server: Server, chat: str) -> tuple[int, dict[str, object]]:
    async with (
        aiohttp.ClientSession(server.url) as web,
        web.get(f"/v1/chats/{chat}/trace") as answer,
    ):
        return answer.status, await answer.json()


async def test_lore(config: Config, tmp_path: Path) -> None:
    """Lore reaches the backend, stays where it was through a restart, and the trace says why."""
    write(config)
    backend = PromptedBackend()
    server = await serve(config, backend=backend)
    async with connected(server.url) as client:
        await client.send(ChatOpen(id="a", persona="wren"))
        opened = await client.until(ChatSnapshot)
        assert [m.text for m in opened.messages] == ["Mind the wheel, You."]
        status, before = await trace(server, opened.chat)
        assert (status, before["left_out"]) == (200, 0)
        backend.say("It was long ago.")
        backend.finish()
        await client.say(opened.chat, "Tell me of the flood.")
        done = await client.until(TurnDone)
    first = backend.turns[0]
    texts = ["Mind the wheel, You.", "The wheel is of oak.", "In the flood Wren rang the bell."]
    assert [m.text for m in first.messages[1:]] == [*texts, "Tell me of the flood."]
    assert first.messages[2].role is Role.SYSTEM
    assert first.shared == 1
    assert first.persona.startswith("wren@")
    _, told = await trace(server, opened.chat)
    entries = told["entries"]
    assert isinstance(entries, list)
    assert [(e["key"], e["cause"], e["place"]) for e in entries] == [
        ("wheel", "key", "before"),
        ("flood", "key", "before"),
    ]
    assert told["tokens"] == first_tokens(first.messages)
    await server.stop()
    backend = PromptedBackend()
    server = await serve(config, backend=backend)
    async with connected(server.url) as client:
        assert isinstance(await client.subscribe(opened.chat), ChatSnapshot)
        assert await trace(server, opened.chat) == (200, told)
        backend.say("Bread.")
        backend.finish()
        await client.say(opened.chat, "And now?")
        await client.until(TurnDone)
        spoken = backend.turns[0].messages
        assert spoken[: len(first.messages)] == first.messages
        assert spoken[len(first.messages)].text == done.message.text
        assert spoken[-1].text == "And now?"
    await server.stop()


def first_tokens(messages: object) -> int:
    assert isinstance(messages, tuple)
    return sum(len(message.text.split()) + 1 for message in messages)


async def test_no_chat(server: Server) -> None:
    """A chat that is not there has no trace."""
    status, body = await trace(server, "c_none")
    assert status == 404
    assert body["error"] == {"code": "unknown_chat", "message": "no chat 'c_none'", "where": ""}
