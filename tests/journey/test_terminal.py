"""`greenroom chat` against a real server."""

from __future__ import annotations

import asyncio
import io
import os
import queue
import re
import signal
from typing import TYPE_CHECKING

import pytest

from backends.errors import BackendErrorCode
from gateway.errors import StartError
from gateway.terminal import socket_url, talk

if TYPE_CHECKING:
    from gateway.app import Server
    from gateway.testing import PromptedBackend


class Keyboard(io.StringIO):
    """Gives the lines that are typed, when they are."""

    def __init__(self) -> None:
        super().__init__()
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()

    def type(self, line: str) -> None:
        self._lines.put(line)

    def readline(self, size: int | None = -1, /) -> str:  # type: ignore[override]
        return self._lines.get()


class Screen(io.StringIO):
    """Remembers what is shown and lets a test wait for it."""

    def __init__(self) -> None:
        super().__init__()
        self._written = asyncio.Event()

    def write(self, text: str, /) -> int:
        self._written.set()
        return super().write(text)

    async def shows(self, text: str) -> None:
        async with asyncio.timeout(20):
            while text not in self.getvalue():
                self._written.clear()
                await self._written.wait()


async def test_talk(server: Server, backend: PromptedBackend) -> None:
    """Greeting, reply, numbers, a stop by Ctrl-C, a failure, and the way back to the chat."""
    keyboard, screen = Keyboard(), Screen()
    talking = asyncio.create_task(talk(server.url, "tess", "Ann", reading=keyboard, writing=screen))
    await screen.shows("Tess: Mind the third step, Ann.\nAnn: ")
    keyboard.type("Hello?\n")
    backend.say("Good ")
    backend.say("evening.\x1b[31m")
    backend.finish()
    await screen.shows("Tess: Good evening.[31m\n")
    await screen.shows("3 prompt tokens, 2 from cache")
    keyboard.type("\n")
    keyboard.type("More.\n")
    backend.say("On and on")
    await screen.shows("On and on")
    os.kill(os.getpid(), signal.SIGINT)
    await screen.shows("(stopped)")
    keyboard.type("Again.\n")
    backend.fail(BackendErrorCode.CRASHED)
    await screen.shows("(failed: it broke)")
    keyboard.type("x" * 16_001 + "\n")
    await screen.shows("! the message has 16001 characters; the limit is 16000")
    keyboard.type("/quit\n")
    assert await talking == 0
    found = re.search(r"--resume (c_\w+)", screen.getvalue())
    assert found
    keyboard, screen = Keyboard(), Screen()
    keyboard.type("")
    assert await talk(server.url, "tess", "Ann", found[1], reading=keyboard, writing=screen) == 0
    assert "Ann: Hello?\nTess: Good evening." in screen.getvalue()


async def test_unknown_persona(server: Server) -> None:
    """A persona that is not there is one clear line."""
    with pytest.raises(StartError, match="no persona 'nobody'"):
        await talk(server.url, "nobody", "You")


def test_socket_url() -> None:
    """The socket's address follows from the page's."""
    assert socket_url("http://127.0.0.1:8642/") == "ws://127.0.0.1:8642/v1/ws"
    assert socket_url("https://chat.example") == "wss://chat.example/v1/ws"
    assert socket_url("localhost:9") == "ws://localhost:9/v1/ws"
