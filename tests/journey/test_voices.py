"""Several backends: a chat chooses who speaks, durably, and never a name that is not there."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
from typing import TYPE_CHECKING
from urllib.request import urlopen

import pytest

from backends.scripted import Script, ScriptedBackend
from gateway.app import Server, serve
from gateway.config import Config, DataConfig, ServerConfig
from gateway.errors import StartError
from gateway.protocol import (
    ChatOpen,
    ChatSnapshot,
    ChatSubscribe,
    ChatUpdated,
    ChatUse,
    CloseCode,
    ErrorFrame,
    TurnDone,
    TurnFailed,
    TurnStarted,
)
from gateway.terminal import talk
from gateway.testing import PromptedBackend, connected

if TYPE_CHECKING:
    from pathlib import Path

    from backends.api import Capabilities
    from gateway.history import Chat


class Named(ScriptedBackend):
    """A scripted backend under another name, that says its name."""

    def __init__(self, name: str) -> None:
        super().__init__(Script(lines=(f"I am {name}.",), delay=0))
        self.name = name
        self.started = 0

    async def start(self) -> Capabilities:
        self.started += 1
        return await super().start()


def config(folder: Path) -> Config:
    return Config(server=ServerConfig(port=0), data=DataConfig(folder=folder))


async def started(folder: Path, *names: str) -> tuple[Server, list[Named]]:
    made = [Named(name) for name in names]
    return await serve(config(folder), backend=made[0], more=made[1:]), made


async def test_a_chat_chooses_its_voice(tmp_path: Path) -> None:
    """The default speaks until another is chosen; all watchers hear of it; a restart keeps it."""
    server, made = await started(tmp_path, "one", "two")
    async with connected(server.url) as alice, connected(server.url) as bob:
        await alice.send(ChatOpen(id="a", persona="maren"))
        chat = (await alice.until(ChatSnapshot)).chat
        await bob.send(ChatSubscribe(id="b", chat=chat))
        assert (await bob.until(ChatSnapshot)).backend == ""
        await alice.say(chat, "Who are you?")
        assert (await alice.until(TurnStarted)).backend == "one"
        said = (await alice.until(TurnDone)).message
        assert said.text == "I am one."
        assert said.stats is not None
        assert said.stats.backend == "one"
        assert made[1].started == 0
        await bob.send(ChatUse(id="u", chat=chat, backend="two"))
        assert (await bob.until(ChatUpdated, re="u")).backend == "two"
        assert (await alice.until(ChatUpdated)).backend == "two"
        await alice.say(chat, "And now?")
        assert (await alice.until(TurnDone)).message.text == "I am two."
    await server.stop()
    server, _ = await started(tmp_path, "one", "two")
    async with connected(server.url) as alice:
        await alice.send(ChatSubscribe(id="s", chat=chat))
        assert (await alice.until(ChatSnapshot)).backend == "two"
        await alice.say(chat, "Still there?")
        assert (await alice.until(TurnStarted)).backend == "two"
        await alice.until(TurnDone)
    await server.stop()
    server, _ = await started(tmp_path, "one")
    async with connected(server.url) as alice:
        await alice.send(ChatSubscribe(id="s", chat=chat))
        await alice.until(ChatSnapshot)
        await alice.say(chat, "And without two?")
        assert (await alice.until(TurnStarted)).backend == "one"
        await alice.until(TurnDone)
    await server.stop()


async def test_open_with_a_voice(tmp_path: Path) -> None:
    """A chat may choose when it is opened; an unknown name is refused with the nearest."""
    server, _ = await started(tmp_path, "one", "two")
    async with connected(server.url) as alice:
        await alice.send(ChatOpen(id="a", persona="maren", backend="twoo"))
        refused = await alice.until(ErrorFrame)
        assert (refused.code, refused.detail["nearest"]) == ("unknown_backend", "two")
        await alice.send(ChatOpen(id="b", persona="maren", backend="two"))
        snapshot = await alice.until(ChatSnapshot)
        assert snapshot.backend == "two"
        await alice.send(ChatUse(id="c", chat=snapshot.chat, backend="three"))
        assert (await alice.until(ErrorFrame, re="c")).code == "unknown_backend"
        await alice.send(ChatOpen(id="b", persona="maren", backend="two"))
        assert (await alice.until(ChatSnapshot, re="b")).chat == snapshot.chat
        await alice.send(ChatOpen(id="b", persona="maren", backend="one"))
        other = await alice.until(ChatSnapshot, re="b")
        assert (other.chat == snapshot.chat, other.backend) == (False, "one")
    await server.stop()


async def test_not_while_speaking(tmp_path: Path) -> None:
    """The voice cannot change in the middle of a reply."""
    slow = PromptedBackend()
    server = await serve(config(tmp_path), backend=slow, more=[Named("two")])
    async with connected(server.url) as alice:
        await alice.send(ChatOpen(id="a", persona="maren"))
        chat = (await alice.until(ChatSnapshot)).chat
        await alice.say(chat, "Hello?")
        await alice.send(ChatUse(id="u", chat=chat, backend="two"))
        refused = await alice.until(ErrorFrame, re="u")
        assert (refused.code, refused.retryable) == ("turn_in_progress", True)
    await server.stop()


async def test_list(tmp_path: Path) -> None:
    """GET /v1/backends lists them all, says which is the default, and starts no other."""
    server, made = await started(tmp_path, "one", "two")
    await server.parts.ensemble.default.begin()

    def get() -> object:
        with urlopen(server.url + "v1/backends") as answer:
            return json.load(answer)

    listed = await asyncio.to_thread(get)
    assert isinstance(listed, dict)
    assert [(b["name"], b["state"], b["default"]) for b in listed["data"]] == [
        ("one", "ready", True),
        ("two", "idle", False),
    ]
    assert made[1].started == 0
    await server.stop()


async def test_a_choice_outlives_its_socket(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A socket that is closed while its choice is written does not undo half of it."""
    server, _ = await started(tmp_path, "one", "two")
    history = server.parts.history
    write, writing, gate = history.update, asyncio.Event(), asyncio.Event()

    async def slowly(chat: Chat) -> None:
        writing.set()
        await gate.wait()
        await write(chat)

    monkeypatch.setattr(history, "update", slowly)
    async with contextlib.AsyncExitStack() as stack:
        alice = await stack.enter_async_context(connected(server.url))
        [session] = server.parts.sessions
        bob = await stack.enter_async_context(connected(server.url))
        chat = (await alice.open("maren")).chat
        await bob.subscribe(chat)
        await alice.send(ChatUse(id="u", chat=chat, backend="two"))
        await writing.wait()
        session.end(CloseCode.SLOW_READER)
        await session.closed.wait()
        gate.set()
        assert (await bob.until(ChatUpdated)).backend == "two"
        stored = await history.load(chat)
        assert stored is not None
        assert stored.backend == "two"
    await server.stop()


async def test_why_a_reply_failed_is_kept(tmp_path: Path) -> None:
    """The error of a failed turn is in its message, and is still there after a restart."""
    backend = PromptedBackend()
    server = await serve(config(tmp_path), backend=backend)
    async with connected(server.url) as alice:
        chat = (await alice.open("maren")).chat
        await alice.say(chat, "Hello?")
        backend.say("Well")
        backend.fail()
        failed = await alice.until(TurnFailed)
        assert failed.error.code == "crashed"
        assert failed.message.error == failed.error
    await server.stop()
    server = await serve(config(tmp_path), backend=PromptedBackend())
    async with connected(server.url) as alice:
        again = await alice.subscribe(chat)
        assert isinstance(again, ChatSnapshot)
        assert again.messages[-1] == failed.message
        assert [m.error for m in again.messages[:-1]] == [None, None]
    await server.stop()


async def test_terminal_chooses(tmp_path: Path) -> None:
    """`greenroom chat --backend` chooses for a new chat and for a resumed one."""
    server, _ = await started(tmp_path, "one", "two")
    keys, screen = io.StringIO("Hello?\n"), io.StringIO()
    assert await talk(server.url, "maren", "You", backend="two", reading=keys, writing=screen) == 0
    assert "I am two." in screen.getvalue()
    [chat] = await server.parts.history.summaries()
    keys, screen = io.StringIO("And now?\n"), io.StringIO()
    await talk(server.url, "maren", "You", chat.id, backend="one", reading=keys, writing=screen)
    assert "I am one." in screen.getvalue()
    with pytest.raises(StartError, match="no backend 'three'"):
        await talk(server.url, "maren", "You", chat.id, backend="three", writing=io.StringIO())
    await server.stop()
