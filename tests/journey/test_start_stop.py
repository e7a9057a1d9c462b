"""A server begins and ends: what it waits for, what it refuses, and what it leaves behind."""

from __future__ import annotations

import asyncio
import socket
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from backends.errors import BackendError, BackendErrorCode
from gateway.app import serve
from gateway.config import DataConfig
from gateway.errors import HistoryError, HistoryFault, StartError
from gateway.protocol import (
    ChatSnapshot,
    Goodbye,
    MessageStatus,
    Place,
    TurnCreate,
    TurnDone,
    TurnFailed,
)
from gateway.testing import PromptedBackend, connected

if TYPE_CHECKING:
    from pathlib import Path

    from backends.api import Capabilities
    from gateway.config import Config


async def test_turn_waits_for_the_backend(config: Config) -> None:
    """A message that comes while the model loads is accepted and answered once it is there."""
    gate = asyncio.Event()
    backend = PromptedBackend(gate=gate)
    server = await serve(config, backend=backend)
    try:
        async with connected(server.url) as client:
            chat = await client.open("tess")
            await client.say(chat.chat, "Hello?")
            assert backend.turns == []
            gate.set()
            backend.say("There you are.")
            backend.finish()
            assert isinstance(await client.end(), TurnDone)
    finally:
        await server.stop()


async def test_turn_does_not_wait_for_ever(config: Config) -> None:
    """Past the bound the turn fails as unavailable, with what the backend is doing."""
    quick = replace(config, server=replace(config.server, ready_seconds=0.02))
    server = await serve(quick, backend=PromptedBackend(gate=asyncio.Event()))
    try:
        async with connected(server.url) as client:
            chat = await client.open("tess")
            await client.say(chat.chat, "Hello?")
            failed = await client.end()
        assert isinstance(failed, TurnFailed)
        assert (failed.error.code, failed.error.retryable) == ("unavailable", True)
        assert "waiting for the gate" in failed.error.message
    finally:
        await server.stop()


async def test_reply_takes_too_long(config: Config) -> None:
    """A backend that hangs fails the turn as a timeout, and its stream is closed."""
    quick = replace(config, server=replace(config.server, turn_seconds=1.0))
    backend = PromptedBackend()
    server = await serve(quick, backend=backend)
    try:
        async with connected(server.url) as client:
            chat = await client.open("tess")
            await client.say(chat.chat, "Hello?")
            backend.say("Well")
            failed = await client.end()
        assert isinstance(failed, TurnFailed)
        assert failed.error.code == "timeout"
        assert failed.message.text == "Well"
        assert backend.open_streams == 0
    finally:
        await server.stop()


async def test_stop_keeps_the_partial(config: Config) -> None:
    """Stopping says goodbye, stores the live reply as interrupted, and the chat goes on."""
    backend = PromptedBackend()
    server = await serve(config, backend=backend)
    async with connected(server.url) as client:
        chat = await client.open("tess")
        await client.say(chat.chat, "Hello?")
        backend.say("I was about")
        await client.text("about")
        stopping = asyncio.create_task(server.stop())
        assert (await client.until(Goodbye)).reason == "shutdown"
        failed = await client.end()
        assert isinstance(failed, TurnFailed)
        assert failed.error.code == "unavailable"
        assert failed.message.status is MessageStatus.INTERRUPTED
        assert await client.closed() == 4009
        await stopping
    backend = PromptedBackend()
    server = await serve(config, backend=backend)
    try:
        async with connected(server.url) as client:
            assert failed.epoch is not None
            place = Place(epoch=failed.epoch, seq=1)
            again = await client.subscribe(chat.chat, place)
            assert isinstance(again, ChatSnapshot)
            assert again.epoch != failed.epoch
            last = again.messages[-1]
            assert (last.text, last.status) == ("I was about", MessageStatus.INTERRUPTED)
            await client.say(chat.chat, "Go on.")
            backend.say("To leave.")
            backend.finish()
            assert isinstance(await client.end(), TurnDone)
        assert "I was about" in [m.text for m in backend.turns[0].messages]
    finally:
        await server.stop()


async def test_stop_lets_a_reply_end(config: Config) -> None:
    """A reply that ends within the grace is whole; a new turn is refused meanwhile."""
    patient = replace(config, server=replace(config.server, grace_seconds=20))
    backend = PromptedBackend()
    server = await serve(patient, backend=backend)
    async with connected(server.url) as client:
        chat, other = await client.open("tess"), await client.open("tess")
        await client.say(chat.chat, "Hello?")
        backend.say("Bye")
        await client.text("Bye")
        stopping = asyncio.create_task(server.stop())
        await client.until(Goodbye)
        error = await client.refused(TurnCreate(id="r", chat=other.chat, text="Hi"))
        assert error.code == "unavailable"
        backend.finish()
        assert isinstance(await client.end(), TurnDone)
        assert await client.closed() == 4009
        await stopping


async def test_storage_fails(config: Config) -> None:
    """A message that cannot be written is refused, and nothing pretends otherwise."""
    server = await serve(config, backend=PromptedBackend())
    try:
        async with connected(server.url) as client:
            chat = await client.open("tess")
            await server.parts.history.aclose()
            error = await client.refused(TurnCreate(id="r", chat=chat.chat, text="Hi"))
            assert error.code == "storage_failed"
            again = await client.subscribe(chat.chat)
            assert isinstance(again, ChatSnapshot)
            assert (again.messages, again.live) == (chat.messages, None)
    finally:
        await server.stop()


async def test_reply_cannot_be_stored(config: Config) -> None:
    """When the end of a reply cannot be written, the turn fails and says so."""
    backend = PromptedBackend()
    server = await serve(config, backend=backend)
    try:
        async with connected(server.url) as client:
            chat = await client.open("tess")
            await client.say(chat.chat, "Hi")
            backend.say("Well.")
            await client.text("Well.")
            await server.parts.history.aclose()
            backend.finish()
            failed = await client.end()
        assert isinstance(failed, TurnFailed)
        assert failed.error.code == "storage_failed"
        assert failed.message.text == "Well."
    finally:
        await server.stop()


async def test_port_in_use(config: Config) -> None:
    """A port that is taken is one clear error, and the data folder is free again."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        same = replace(config, server=replace(config.server, port=port))
        with pytest.raises(StartError, match=f"port {port} .* in use"):
            await serve(same, backend=PromptedBackend())
    server = await serve(config, backend=PromptedBackend())
    await server.stop()


async def test_folder_in_use(config: Config) -> None:
    """Two servers never share a data folder."""
    server = await serve(config, backend=PromptedBackend())
    try:
        with pytest.raises(StartError, match="in use by another"):
            await serve(config, backend=PromptedBackend())
    finally:
        await server.stop()


async def test_folder_unwritable(config: Config, tmp_path: Path) -> None:
    """A data folder that cannot be made is one clear error."""
    (tmp_path / "file").touch()
    broken = replace(config, data=DataConfig(folder=tmp_path / "file" / "data"))
    with pytest.raises(StartError, match="cannot be written"):
        await serve(broken, backend=PromptedBackend())


async def test_damaged_conversations(config: Config) -> None:
    """A damaged database is one clear error that names the file, and the file is left alone."""
    path = config.data.folder / "conversations.sqlite"
    path.write_bytes(b"not a database" * 1000)
    with pytest.raises(HistoryError, match=r"conversations\.sqlite") as caught:
        await serve(config, backend=PromptedBackend())
    assert caught.value.fault is HistoryFault.DAMAGED
    assert path.read_bytes() == b"not a database" * 1000


async def test_unknown_backend(config: Config) -> None:
    """A backend that is not there is one clear error naming the nearest."""
    misspelt = replace(config, backend=replace(config.backend, name="scriptd"))
    with pytest.raises(StartError, match="did you mean 'scripted'"):
        await serve(misspelt)


async def test_backend_that_cannot_start(config: Config) -> None:
    """A backend that refuses to start leaves the page up and fails turns with its own words."""

    class Refusing(PromptedBackend):
        async def start(self) -> Capabilities:
            raise BackendError(BackendErrorCode.UNAVAILABLE, "the weights are missing")

    server = await serve(config, backend=Refusing())
    try:
        await server.parts.ensemble.default.begin()
        assert server.parts.ensemble.default.status().detail == "the weights are missing"
        async with connected(server.url) as client:
            chat = await client.open("tess")
            await client.say(chat.chat, "Hi")
            failed = await client.end()
        assert isinstance(failed, TurnFailed)
        assert failed.error.message == "the weights are missing"
    finally:
        await server.stop()
