"""gateway.presence and erasure: backends hear of who comes, who goes and what is deleted."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from aiohttp import ClientSession

from backends.errors import BackendError, BackendErrorCode
from backends.scripted import Script, ScriptedBackend
from gateway.app import Server, serve
from gateway.config import Config, DataConfig, ServerConfig
from gateway.protocol import (
    ChatDeleted,
    ChatOpen,
    ChatSnapshot,
    ChatSubscribe,
    ChatTyping,
    ChatUnsubscribe,
    ErrorFrame,
    TurnDone,
)
from gateway.testing import connected

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from backends.api import Turn
    from gateway.presence import Presence


class Keeping(ScriptedBackend):
    """Says that it keeps a cache, and writes down what it is told about it."""

    keeps = True

    def __init__(self) -> None:
        super().__init__(Script(delay=0))
        self.told: list[str] = []
        self.turns: list[Turn] = []
        self.broken = False
        self.came = asyncio.Event()

    async def prefetch(self, turn: Turn) -> None:
        self.turns.append(turn)
        self._note(f"prefetch {turn.conversation}")

    async def retire(self, tenant: str, conversation: str) -> None:
        self._note(f"retire {conversation}")

    async def forget(self, tenant: str, owner: str | None) -> int:
        if self.broken:
            raise BackendError(BackendErrorCode.INTERNAL, "the disk is stuck")
        self._note(f"forget {owner}")
        return 3

    def _note(self, line: str) -> None:
        self.told.append(line)
        self.came.set()

    async def until(self, line: str) -> None:
        async with asyncio.timeout(10):
            while line not in self.told:
                self.came.clear()
                await self.came.wait()


@pytest.fixture
async def backend() -> Keeping:
    return Keeping()


@pytest.fixture
async def server(tmp_path: Path, backend: Keeping) -> AsyncIterator[Server]:
    config = Config(server=ServerConfig(port=0), data=DataConfig(folder=tmp_path))
    made = await serve(config, backend=backend)
    presence = made.parts.presence
    presence._grace = 0.05
    yield made
    await made.stop()


async def test_opening_and_typing_prefetch(server: Server, backend: Keeping) -> None:
    """Who opens a chat or types has its prompt brought near, at most once in a while."""
    now = 0.0
    presence: Presence = server.parts.presence
    presence._clock = lambda: now
    await server.parts.ensemble.default.ready(5)
    async with connected(server.url) as alice:
        await alice.send(ChatOpen(id="a", persona="maren"))
        chat = (await alice.until(ChatSnapshot)).chat
        await backend.until(f"prefetch {chat}")
        for _ in range(3):
            await alice.send(ChatTyping(chat=chat))
        await alice.say(chat, "Hello")
        await alice.until(TurnDone)
        assert len(backend.turns) == 1
        now = 10.0
        await alice.send(ChatTyping(chat=chat))
        backend.told.clear()
        await backend.until(f"prefetch {chat}")
    before, after = backend.turns
    assert after.messages[: len(before.messages)] == before.messages
    assert "Hello" in [message.text for message in after.messages]


async def test_the_last_to_leave_retires_the_chat(server: Server, backend: Keeping) -> None:
    """A chat is let go when nobody has watched it for a while, not before."""
    await server.parts.ensemble.default.ready(5)
    async with connected(server.url) as alice, connected(server.url) as bob:
        await alice.send(ChatOpen(id="a", persona="maren"))
        chat = (await alice.until(ChatSnapshot)).chat
        await bob.send(ChatSubscribe(id="b", chat=chat))
        await bob.until(ChatSnapshot)
        await alice.send(ChatUnsubscribe(chat=chat))
        await asyncio.sleep(0.15)
        assert f"retire {chat}" not in backend.told
    await backend.until(f"retire {chat}")


async def test_an_unknown_chat_is_named(server: Server) -> None:
    """Typing into a chat that is not there is answered with an error."""
    async with connected(server.url) as alice:
        await alice.send(ChatTyping(id="x", chat="c_none"))
        assert (await alice.until(ErrorFrame)).code == "unknown_chat"


async def test_a_deleted_chat_is_gone_everywhere(server: Server, backend: Keeping) -> None:
    """DELETE takes the chat from the list, from its watchers and from the backend's cache."""
    await server.parts.ensemble.default.ready(5)
    async with connected(server.url) as alice:
        await alice.send(ChatOpen(id="a", persona="maren"))
        chat = (await alice.until(ChatSnapshot)).chat
        await alice.say(chat, "Hello")
        await alice.until(TurnDone)
        assert await http(server, "DELETE", f"/v1/chats/{chat}") == 204
        await alice.until(ChatDeleted)
        await alice.send(ChatSubscribe(id="s", chat=chat))
        assert (await alice.until(ErrorFrame)).code == "unknown_chat"
    assert f"forget conversation:{chat}" in backend.told
    assert await server.parts.history.load(chat) is None
    assert await server.parts.history.summaries() == ()
    assert await http(server, "DELETE", f"/v1/chats/{chat}") == 404


async def test_a_deletion_that_fails_is_done_later(tmp_path: Path, backend: Keeping) -> None:
    """A cache that could not be deleted is asked again, after a restart too."""
    config = Config(server=ServerConfig(port=0), data=DataConfig(folder=tmp_path))
    server = await serve(config, backend=backend)
    await server.parts.ensemble.default.ready(5)
    backend.broken = True
    async with connected(server.url) as alice:
        await alice.send(ChatOpen(id="a", persona="maren"))
        chat = (await alice.until(ChatSnapshot)).chat
        assert await http(server, "DELETE", f"/v1/chats/{chat}") == 202
    assert await server.parts.history.load(chat) is None
    await server.stop()
    again = Keeping()
    server = await serve(config, backend=again)
    await server.parts.ensemble.default.ready(5)
    assert await server.parts.erasure.carry_out()
    assert again.told == [f"forget conversation:{chat}"]
    assert await server.parts.history.erasures("scripted") == ()
    await server.stop()


async def http(server: Server, method: str, path: str) -> int:
    async with (
        ClientSession() as client,
        client.request(method, server.url.rstrip("/") + path) as answer,
    ):
        return answer.status
