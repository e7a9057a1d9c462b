"""One socket from its first frame to its close. Knows nothing of the HTTP server.

The reader handles one frame after the other; the writer empties the send queue; `deliver` only
appends to it, so a slow socket never holds up a turn.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Protocol

import structlog

from gateway.errors import ErrorCode, HistoryError, ProtocolError, Refused, UnreadableFrame
from gateway.failures import answer
from gateway.ids import new_id
from gateway.protocol import (
    PROTOCOL,
    ChatOpen,
    ChatSet,
    ChatSubscribe,
    ChatTyping,
    ChatUnsubscribe,
    ChatUse,
    CloseCode,
    Goodbye,
    Hello,
    Limits,
    Ping,
    Pong,
    TurnCancel,
    TurnCreate,
    Welcome,
    decode,
    encode,
)
from gateway.sendqueue import SendQueue

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from gateway.chats import Chats
    from gateway.codec import Frame, Subprotocol
    from gateway.config import ServerConfig
    from gateway.presence import Presence
    from gateway.turns import Turns

    Handler = Callable[[Frame], Awaitable[None]]

__all__ = ["Session", "Socket"]

log = structlog.get_logger()

ROOM = 64
"""Requests wait while more frames than this are waiting to be sent."""
FLUSH_WITHIN = 1.0
STUCK_AFTER = 30.0


class Socket(Protocol):
    """The part of a WebSocket that a session needs."""

    async def receive(self) -> str | bytes | CloseCode:
        """The next message, or why there will be none."""
        ...

    async def send(self, data: str | bytes) -> None:
        """Returns when the transport has room again."""
        ...

    async def close(self, code: int) -> None:
        """Idempotent."""
        ...


class Session:
    """Serves one socket; a `gateway.chats.Watcher`. `closed` is set at the end of `run`."""

    def __init__(
        self,
        socket: Socket,
        subprotocol: Subprotocol,
        *,
        chats: Chats,
        turns: Turns,
        presence: Presence,
        limits: ServerConfig,
        server: str,
    ) -> None:
        self.id = new_id("s")
        self._socket = socket
        self._subprotocol = subprotocol
        self._chats = chats
        self._turns = turns
        self._presence = presence
        self._limits = limits
        self._server = server
        self._queue = SendQueue()
        self._more = asyncio.Event()
        self._sent = asyncio.Event()
        self.closed = asyncio.Event()
        self._ended: asyncio.Future[CloseCode] = asyncio.get_running_loop().create_future()

    def deliver(self, frame: Frame) -> None:
        """Queues a frame; ends the session when the reader on the other side is too slow."""
        self._queue.push(frame)
        self._more.set()
        if self._queue.overflowed:
            self.end(CloseCode.SLOW_READER)

    def end(self, code: CloseCode) -> None:
        """Closes the socket soon; the first code counts."""
        if not self._ended.done():
            self._ended.set_result(code)

    def goodbye(self, reason: str, after_ms: int) -> None:
        """Says that the server is about to close."""
        self.deliver(Goodbye(reason=reason, after_ms=after_ms))

    async def run(self) -> None:
        """Serves until one side ends it. Detaches from every chat; their turns go on."""
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(session=self.id)
        try:
            await self._socket.close(await self._serve())
        finally:
            self.closed.set()

    async def _serve(self) -> CloseCode:
        writer = asyncio.create_task(self._write())
        reader = asyncio.create_task(self._read())
        try:
            ends: set[asyncio.Future[CloseCode] | asyncio.Future[None]]
            ends = {reader, writer, self._ended}
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            code = self._ended.result() if self._ended.done() else self._verdict(reader, writer)
            if code is not CloseCode.SLOW_READER and not writer.done():
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._room(0), FLUSH_WITHIN)
        finally:
            reader.cancel()
            writer.cancel()
            await asyncio.wait({reader, writer})
            # After the reader, which may be joining a chat.
            self._presence.left(self._chats.forget_watcher(self))
        log.info("socket_closed", code=int(code))
        return code

    def _verdict(self, reader: asyncio.Task[CloseCode], writer: asyncio.Task[None]) -> CloseCode:
        if reader.done() and not reader.cancelled():
            failure = reader.exception()
            if failure is None:
                return reader.result()
            log.error("session_failed", exc_info=failure)
            return CloseCode.GOING_AWAY
        failure = None if writer.cancelled() else writer.exception()
        return CloseCode.SLOW_READER if isinstance(failure, TimeoutError) else CloseCode.GOING_AWAY

    async def _write(self) -> None:
        while True:
            while len(self._queue):
                data = encode(self._queue.pop(), self._subprotocol)
                async with asyncio.timeout(STUCK_AFTER):
                    try:
                        await self._socket.send(data)
                    except ConnectionError:
                        return
                self._sent.set()
            self._sent.set()
            self._more.clear()
            await self._more.wait()

    async def _room(self, most: int) -> None:
        """Waits until no more than `most` frames wait to be sent."""
        while len(self._queue) > most or (most == 0 and self._more.is_set()):
            self._sent.clear()
            await self._sent.wait()

    async def _read(self) -> CloseCode:
        try:
            async with asyncio.timeout(self._limits.hello_seconds):
                code = await self._greet()
        except TimeoutError:
            return CloseCode.HELLO_TIMEOUT
        while code is None:
            await self._room(ROOM)
            code = await self._step(self._handle)
        return code

    async def _greet(self) -> CloseCode | None:
        greeted = False

        async def handle(frame: Frame) -> None:
            nonlocal greeted
            if not isinstance(frame, Hello):
                raise ProtocolError(ErrorCode.BAD_FRAME, "the first frame must be 'hello'", "t")
            greeted = True
            limits = self._limits
            log.info("socket_opened", client=frame.client)
            self.deliver(
                Welcome(
                    re=frame.id,
                    session=self.id,
                    server=self._server,
                    protocol=PROTOCOL,
                    heartbeat_ms=round(limits.heartbeat_seconds * 1000),
                    limits=Limits(frame_bytes=limits.frame_bytes, text_chars=limits.text_chars),
                )
            )

        code = None
        while code is None and not greeted:
            code = await self._step(handle)
        return code

    async def _step(self, handle: Handler) -> CloseCode | None:
        """Reads and handles one frame; returns why to close, or None to go on."""
        data = await self._socket.receive()
        if isinstance(data, CloseCode):
            return data
        request = chat = None
        try:
            size = len(data) if isinstance(data, bytes) else len(data.encode())
            frame = decode(data, self._subprotocol)
            request, chat = getattr(frame, "id", None), getattr(frame, "chat", None)
            if size > self._limits.frame_bytes:
                return self._too_large(frame, size)
            await handle(frame)
        except UnreadableFrame as error:
            self.deliver(answer(error))
            return CloseCode.BAD_FRAME
        except (Refused, HistoryError) as error:
            re = request or (error.re if isinstance(error, Refused) else None)
            self.deliver(answer(error, re, chat))
        except Exception as error:
            self.deliver(answer(error, request, chat))
        return None

    def _too_large(self, frame: Frame, size: int) -> CloseCode | None:
        """A message that is too long gets a clear answer; any other large frame ends the socket."""
        most = self._limits.frame_bytes
        refused = Refused(
            ErrorCode.TEXT_TOO_LONG if isinstance(frame, TurnCreate) else ErrorCode.BAD_FRAME,
            f"the frame has {size} bytes; the limit is {most}",
            detail={"bytes": size, "limit": most},
        )
        if isinstance(frame, TurnCreate):
            self.deliver(answer(refused, frame.id, frame.chat))
            return None
        self.deliver(answer(refused))
        return CloseCode.BAD_FRAME

    async def _handle(self, frame: Frame) -> None:
        match frame:
            case Ping():
                self.deliver(Pong(re=frame.id, n=frame.n))
            case ChatOpen():
                live = await self._turns.open(frame)
                live.join(self, frame.id)
                self._presence.near(live)
            case ChatSubscribe():
                live = await self._chats.get(frame.chat)
                live.join(self, frame.id, frame.after)
                self._presence.near(live)
            case ChatUnsubscribe():
                live = await self._chats.get(frame.chat)
                live.watchers.discard(self)
                self._presence.left([live])
            case ChatTyping():
                self._presence.near(await self._chats.get(frame.chat))
            case ChatUse():
                await self._turns.use(frame, self)
            case ChatSet():
                await self._turns.set(frame, self)
            case TurnCreate():
                await self._turns.create(frame, self)
            case TurnCancel():
                self._turns.cancel(await self._chats.get(frame.chat), frame)
            case _:
                raise ProtocolError(ErrorCode.BAD_FRAME, f"{frame.T!r} comes once, first", "t")
