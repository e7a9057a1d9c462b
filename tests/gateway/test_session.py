"""gateway.session: a slow or silent reader costs nobody else anything."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, cast

import pytest

from gateway.config import ServerConfig
from gateway.protocol import (
    SERVER_FRAMES,
    CloseCode,
    Hello,
    Ping,
    Pong,
    Subprotocol,
    TurnDelta,
    Welcome,
    decode,
    encode,
)
from gateway.session import ROOM, Session

if TYPE_CHECKING:
    from gateway.chats import Chats, LiveChat
    from gateway.codec import Frame
    from gateway.presence import Presence
    from gateway.turns import Turns


class FakeSocket:
    """A socket whose other side reads only while `reading` is set."""

    def __init__(self) -> None:
        self.incoming: asyncio.Queue[str | bytes | CloseCode] = asyncio.Queue()
        self.reading = asyncio.Event()
        self.sent: list[Frame] = []
        self.arrived = asyncio.Event()
        self.closed_with: int | None = None

    async def receive(self) -> str | bytes | CloseCode:
        return await self.incoming.get()

    async def send(self, data: str | bytes) -> None:
        await self.reading.wait()
        self.sent.append(decode(data, Subprotocol.JSON, SERVER_FRAMES))
        self.arrived.set()

    async def close(self, code: int) -> None:
        self.closed_with = code

    def push(self, frame: Frame) -> None:
        self.incoming.put_nowait(encode(frame, Subprotocol.JSON))

    async def until(self, count: int) -> None:
        """Waits until that many frames were sent."""
        while len(self.sent) < count:
            self.arrived.clear()
            async with asyncio.timeout(5):
                await self.arrived.wait()


class NoChats:
    """Stands where no chat is used."""

    def forget_watcher(self, watcher: object) -> tuple[LiveChat, ...]:
        return ()


class NobodyThere:
    """Stands where nobody comes and goes."""

    def left(self, chats: object) -> None:
        return


def session_on(socket: FakeSocket) -> Session:
    return Session(
        socket,
        Subprotocol.JSON,
        chats=cast("Chats", NoChats()),
        turns=cast("Turns", None),
        presence=cast("Presence", NobodyThere()),
        limits=ServerConfig(),
        server="test/0",
    )


@pytest.fixture
async def socket() -> FakeSocket:
    return FakeSocket()


async def test_slow_reader_gets_merged_deltas(socket: FakeSocket) -> None:
    """Deltas that wait for a slow reader become one frame; deliver never blocks."""
    socket.reading.set()
    socket.push(Hello())
    session = session_on(socket)
    running = asyncio.create_task(session.run())
    await socket.until(1)
    socket.reading.clear()
    for n in range(1000):
        session.deliver(TurnDelta(chat="c", turn="t", epoch="e", seq=n + 1, off=n, text="x"))
    socket.reading.set()
    await socket.until(2)
    assert isinstance(socket.sent[0], Welcome)
    assert socket.sent[1] == TurnDelta(
        chat="c", turn="t", epoch="e", seq=1000, off=0, text="x" * 1000
    )
    socket.incoming.put_nowait(CloseCode.NORMAL)
    await running
    assert socket.closed_with == CloseCode.NORMAL


async def test_too_slow_reader_is_closed(socket: FakeSocket) -> None:
    """Past the bound the socket is closed with 4006, without waiting for the reader."""
    session = session_on(socket)
    running = asyncio.create_task(session.run())
    for n in range(400):
        session.deliver(Pong(n=n))
    async with asyncio.timeout(5):
        await running
    assert socket.closed_with == CloseCode.SLOW_READER
    assert socket.sent == []


async def test_requests_wait_for_the_reader(socket: FakeSocket) -> None:
    """A client that asks and does not read is not served further until it reads."""
    asked = 3 * ROOM
    socket.push(Hello())
    for n in range(asked):
        socket.push(Ping(n=n))
    session = session_on(socket)
    running = asyncio.create_task(session.run())
    for _ in range(20 * asked):  # let everything run that can
        await asyncio.sleep(0)
    assert asked - ROOM - 2 <= socket.incoming.qsize() <= asked - ROOM
    socket.reading.set()
    await socket.until(1 + asked)
    assert [f.n for f in socket.sent if isinstance(f, Pong)] == list(range(asked))
    socket.incoming.put_nowait(CloseCode.NORMAL)
    await running


async def test_last_words_are_sent(socket: FakeSocket) -> None:
    """What was said before the end of a session still goes out, then the code."""
    socket.reading.set()
    socket.push(Hello())
    session = session_on(socket)
    running = asyncio.create_task(session.run())
    await socket.until(1)
    session.goodbye("shutdown", 1000)
    session.end(CloseCode.DRAINING)
    await running
    assert [f.T for f in socket.sent] == ["welcome", "goodbye"]
    assert socket.closed_with == CloseCode.DRAINING
