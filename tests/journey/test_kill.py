"""A real `greenroom run` in its own process: killed, stopped, refused; nothing is lost."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sqlite3
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from websockets.exceptions import ConnectionClosed

from gateway.protocol import ChatSnapshot, MessageStatus, TurnDelta, TurnDone
from gateway.testing import Client, connected

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

ROOT = Path(__file__).parents[2]
ANNOUNCED = "Greenroom is at "
WITHIN = 60.0


def clean_environ() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if not k.startswith("GREENROOM_")}


async def start(folder: Path, *more: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "gateway", "run", "--backend", "scripted"),
        *("--port", "0", "--data", str(folder), *more),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=ROOT,
        env=clean_environ(),
    )


@contextlib.asynccontextmanager
async def running(folder: Path) -> AsyncGenerator[tuple[asyncio.subprocess.Process, str], None]:
    """A server process and the address it announced."""
    process = await start(folder)
    assert process.stdout
    try:
        async with asyncio.timeout(WITHIN):
            line = (await process.stdout.readline()).decode()
        assert line.startswith(ANNOUNCED), line
        yield process, line.removeprefix(ANNOUNCED).strip()
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


def stored_text(folder: Path, message: str) -> str:
    """What is on disk of a reply now, as another process sees it."""
    with contextlib.closing(sqlite3.connect(folder / "conversations.sqlite")) as raw:
        [text] = raw.execute("SELECT text FROM messages WHERE id = ?", (message,)).fetchone()
    return str(text)


async def spoken_until_stored(client: Client, folder: Path, reply: str) -> None:
    """Reads deltas until some of the reply is on disk."""
    while not stored_text(folder, reply):
        await client.until(TurnDelta)


async def test_killed_in_the_middle(tmp_path: Path) -> None:
    """After SIGKILL history is whole, the reply is interrupted with its partial, talk goes on."""
    async with running(tmp_path) as (process, url), connected(url) as client:
        chat = await client.open("maren", "Ann")
        await client.say(chat.chat, "First.")
        whole = await client.end()
        assert isinstance(whole, TurnDone)
        cut = await client.say(chat.chat, "Second.")
        client.events.clear()
        await spoken_until_stored(client, tmp_path, cut.reply_id)
        process.kill()
        with contextlib.suppress(ConnectionClosed):
            while True:
                await client.receive()
        heard = "".join(e.text for e in client.events if isinstance(e, TurnDelta))
    async with running(tmp_path) as (process, url), connected(url) as client:
        again = await client.subscribe(chat.chat)
        assert isinstance(again, ChatSnapshot)
        assert again.epoch != chat.epoch
        assert again.live is None
        assert [m.text for m in again.messages[:-1]] == [
            chat.messages[0].text,
            "First.",
            whole.message.text,
            "Second.",
        ]
        partial = again.messages[-1]
        assert (partial.id, partial.status) == (cut.reply_id, MessageStatus.INTERRUPTED)
        assert partial.text
        assert heard.startswith(partial.text)
        await client.say(chat.chat, "Go on.")
        assert isinstance(await client.end(), TurnDone)
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), WITHIN) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_told_to_stop(tmp_path: Path, number: signal.Signals) -> None:
    """A signal ends the server in order: goodbye, 4009, exit code 0, no traceback."""
    async with running(tmp_path) as (process, url), connected(url) as client:
        process.send_signal(number)
        assert await client.closed() == 4009
        assert process.stderr
        errors = (await process.stderr.read()).decode()
        assert await asyncio.wait_for(process.wait(), WITHIN) == 0
    assert "Traceback" not in errors
    assert '"server_stopped"' in errors


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--port", "TAKEN"], "port TAKEN on 127.0.0.1 is in use"),
        (["--data", "/dev/null/data"], "data folder /dev/null/data cannot be written"),
        (["--config", "/dev/null/none"], "cannot read /dev/null/none"),
        (["--backend", "scriptde"], "did you mean 'scripted'"),
        (["--port", "70000"], "server.port must be from 0 to 65535"),
    ],
)
async def test_one_clear_line(tmp_path: Path, arguments: list[str], line: str) -> None:
    """A server that cannot start says why in one line of stderr and exits with 2."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        process = await start(tmp_path, *(a.replace("TAKEN", port) for a in arguments))
        async with asyncio.timeout(WITHIN):
            out, errors = await process.communicate()
    said = [x for x in errors.decode().splitlines() if not x.startswith("{")]
    assert process.returncode == 2
    assert out == b""
    assert len(said) == 1
    assert said[0].startswith("greenroom: ")
    assert line.replace("TAKEN", port) in said[0]
