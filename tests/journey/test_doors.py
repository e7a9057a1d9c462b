"""Bad input at the socket: each a clear typed answer, nothing stored, nothing lost."""

from __future__ import annotations

import asyncio
import contextlib
import json
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from structlog.testing import capture_logs
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.typing import Subprotocol as Name

from gateway.app import Server, serve
from gateway.config import Config, ServerConfig
from gateway.protocol import (
    ChatOpen,
    ChatSnapshot,
    ChatSubscribe,
    ChatUnsubscribe,
    ErrorFrame,
    Hello,
    Ping,
    Pong,
    Subprotocol,
    TurnCancel,
    TurnCreate,
    TurnDone,
    Welcome,
)
from gateway.testing import Client, PromptedBackend, connected

if TYPE_CHECKING:
    from gateway.codec import Frame


def socket_url(server: Server) -> str:
    return server.url.replace("http", "ws", 1) + "v1/ws"


async def alive(client: Client) -> None:
    """Fails unless the socket still answers."""
    await client.send(Ping(n=7))
    assert (await client.until(Pong)).n == 7


async def test_unknown_persona(server: Server) -> None:
    """A persona that is not there is refused, naming the nearest."""
    async with connected(server.url) as client:
        error = await client.refused(ChatOpen(id="r1", persona="tes"))
        assert error.code == "unknown_persona"
        assert error.detail["nearest"] == "tess"
        await alive(client)


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        (ChatSubscribe(id="r", chat="c_none"), "unknown_chat"),
        (TurnCreate(id="r", chat="c_none", text="Hi"), "unknown_chat"),
        (TurnCancel(id="r", chat="c_none", turn="t"), "unknown_chat"),
        (ChatUnsubscribe(id="r", chat="c_none"), "unknown_chat"),
    ],
)
async def test_unknown_chat(server: Server, frame: Frame, code: str) -> None:
    """A chat that is not there is refused by every request, with the chat named."""
    async with connected(server.url) as client:
        error = await client.refused(frame)
        assert (error.code, error.chat) == (code, "c_none")
        await alive(client)


async def test_unknown_turn(server: Server, persona: str) -> None:
    """A turn that the chat does not have cannot be stopped."""
    async with connected(server.url) as client:
        chat = await client.open(persona)
        error = await client.refused(TurnCancel(id="r", chat=chat.chat, turn="t_none"))
    assert error.code == "unknown_turn"


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", "empty_text"),
        (" \n\t ", "empty_text"),
        ("x" * 16_001, "text_too_long"),
        ("x" * 1_000_000, "text_too_long"),
        ("🚪" * 250_000, "text_too_long"),
    ],
    ids=["empty", "blank", "one-more", "megabyte", "megabyte-of-emoji"],
)
async def test_bad_texts(
    server: Server, backend: PromptedBackend, persona: str, text: str, code: str
) -> None:
    """A message without content or too long is refused, not stored, and the socket lives."""
    async with connected(server.url) as client:
        chat = await client.open(persona)
        error = await client.refused(TurnCreate(id="r", chat=chat.chat, text=text))
        assert error.code == code
        after = await client.subscribe(chat.chat)
        assert isinstance(after, ChatSnapshot)
        assert after.messages == chat.messages
        await client.say(chat.chat, "x" * 16_000)
        backend.finish()
        assert isinstance(await client.end(), TurnDone)


@pytest.mark.parametrize("size", [100_000, 5_000_000])
async def test_huge_frames(server: Server, size: int) -> None:
    """Any other frame above the limit closes the socket with 4001, however large it is."""
    async with connected(server.url) as client:
        with contextlib.suppress(ConnectionClosed):  # the answer may come before the end
            await client.send(ChatOpen(id="r", persona="x" * size))
        assert await client.closed() == 4001


@pytest.mark.parametrize(
    ("size", "code"),
    [(100_000, 4001), (5_000_000, 4001), (0, 1000)],
    ids=["ours", "aiohttp", "bye"],
)
async def test_log_has_the_close_code(server: Server, size: int, code: int) -> None:
    """What is logged is the code that the socket was closed with, whoever closed it."""
    with capture_logs() as logs:
        async with connected(server.url) as client:
            [session] = server.parts.sessions
            if size:
                with contextlib.suppress(ConnectionClosed):
                    await client.send(ChatOpen(id="r", persona="x" * size))
                assert await client.closed() == code
        async with asyncio.timeout(10):
            await session.closed.wait()
    assert [e["code"] for e in logs if e["event"] == "socket_closed"] == [code]


@pytest.mark.parametrize(
    ("subprotocol", "data"),
    [
        (Subprotocol.JSON, "{not json"),
        (Subprotocol.JSON, b"\x00\xff\xfe garbage"),
        (Subprotocol.MSGPACK, b"\xc1\xff\xff garbage"),
        (Subprotocol.MSGPACK, '{"t": "ping", "d": {"n": 1}}'),
    ],
)
async def test_garbage(server: Server, subprotocol: Subprotocol, data: str | bytes) -> None:
    """Bytes that are not of the subprotocol get an error and the close code 4001."""
    async with connected(server.url, subprotocol) as client:
        await client.socket.send(data)
        assert (await client.until(ErrorFrame)).code == "bad_frame"
        assert await client.closed() == 4001


@pytest.mark.parametrize(
    ("obj", "code", "field"),
    [
        ([1, 2], "bad_frame", None),
        ({"t": "turn.explode", "id": "r"}, "unknown_type", "t"),
        ({"t": "ping", "id": "r", "d": {"n": "1"}}, "bad_field", "d.n"),
        ({"t": "ping", "id": "r", "d": {"n": 1, "m": 2}}, "bad_field", "d.m"),
        ({"t": "hello", "id": "r"}, "bad_frame", "t"),
    ],
)
async def test_wrong_frames(server: Server, obj: object, code: str, field: str | None) -> None:
    """A frame that is not of the protocol is refused by name, and the socket lives."""
    async with connected(server.url) as client:
        await client.socket.send(json.dumps(obj))
        error = await client.until(ErrorFrame)
        assert (error.code, error.detail.get("field")) == (code, field)
        assert error.re == ("r" if isinstance(obj, dict) else None)
        await alive(client)


async def test_hello_comes_first(server: Server) -> None:
    """Before hello everything is refused; hello still works then."""
    async with connected(server.url, hello=False) as client:
        error = await client.refused(Ping(id="r", n=1))
        assert error.code == "bad_frame"
        await client.send(Hello(id="h"))
        assert (await client.until(Welcome)).re == "h"


async def test_no_hello(config: Config) -> None:
    """A socket that says nothing is closed with 4002."""
    quick = replace(config, server=replace(config.server, hello_seconds=0.05))
    server = await serve(quick, backend=PromptedBackend())
    try:
        async with connected(server.url, hello=False) as client:
            assert await client.closed() == 4002
    finally:
        await server.stop()


@pytest.mark.parametrize("offered", [None, [Name("persona.v9.json")]])
async def test_no_subprotocol(server: Server, offered: list[Name] | None) -> None:
    """A socket that offers nothing we speak is closed with 4005."""
    async with connect(socket_url(server), subprotocols=offered, proxy=None) as socket:
        await socket.wait_closed()
        assert socket.close_code == 4005


async def test_origins(server: Server) -> None:
    """A page of another site is closed with 4004; this server's own page is welcome."""
    async with connected(server.url, hello=False, origin="http://evil.example") as client:
        assert await client.closed() == 4004
    async with connected(server.url, origin=server.url.rstrip("/")) as client:
        await alive(client)


async def test_foreign_host(server: Server) -> None:
    """Under a foreign name (DNS rebinding) the socket is refused before it opens."""
    with pytest.raises(InvalidStatus) as caught:
        await connect(
            f"ws://evil.example:{server.port}/v1/ws",
            host="127.0.0.1",
            port=server.port,
            subprotocols=[Name("persona.v1.json")],
            proxy=None,
        )
    assert caught.value.response.status_code == 403


async def test_live_turns(config: Config) -> None:
    """Above the limit of live replies a turn is refused and may be tried again."""
    narrow = replace(config, server=ServerConfig(port=0, live_turns=1, grace_seconds=0))
    backend = PromptedBackend()
    server = await serve(narrow, backend=backend)
    try:
        async with connected(server.url) as client:
            one, two = await client.open("tess"), await client.open("tess")
            await client.say(one.chat, "Hi")
            error = await client.refused(TurnCreate(id="r", chat=two.chat, text="Hi"))
            assert (error.code, error.retryable) == ("rate_limited", True)
            assert error.retry_after_ms == 1000
            backend.finish()
            await client.end()
            await client.say(two.chat, "Hi", "r")
            backend.finish()
            await client.end()
    finally:
        await server.stop()
