"""Driving a real server in tests and load runs: a client of the wire, and a backend on a leash."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, TypeVar

from backends.api import (
    BackendState,
    BackendStatus,
    Capabilities,
    Finished,
    FinishReason,
    TextDelta,
    Usage,
)
from backends.errors import BackendError, BackendErrorCode
from backends.stateless import Stateless
from gateway.codec import Frame
from gateway.ids import new_id
from gateway.protocol import (
    SERVER_FRAMES,
    ChatEvent,
    ChatOpen,
    ChatSnapshot,
    ChatSubscribe,
    ErrorFrame,
    Hello,
    Place,
    ReplyEvent,
    Subprotocol,
    TurnAccepted,
    TurnCancel,
    TurnCancelled,
    TurnCreate,
    TurnDelta,
    TurnDone,
    TurnFailed,
    Welcome,
    decode,
    encode,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from websockets.asyncio.client import ClientConnection

    from backends.api import Turn, TurnEvent

__all__ = ["Client", "PromptedBackend", "connected"]

F = TypeVar("F", bound=Frame)
Terminal = TurnDone | TurnCancelled | TurnFailed
WITHIN = 20.0


class Client:
    """A client of `/v1/ws`. `events` are the chat events it received, in order."""

    def __init__(self, socket: ClientConnection, subprotocol: Subprotocol) -> None:
        self.socket = socket
        self.subprotocol = subprotocol
        self.events: list[ChatEvent] = []

    async def send(self, frame: Frame) -> None:
        """Sends one frame."""
        await self.socket.send(encode(frame, self.subprotocol))

    async def receive(self) -> Frame:
        """The next frame, within a bound."""
        async with asyncio.timeout(WITHIN):
            frame = decode(await self.socket.recv(), self.subprotocol, SERVER_FRAMES)
        if isinstance(frame, ChatEvent):
            self.events.append(frame)
        return frame

    async def until(self, *kinds: type[F], re: str | None = None) -> F:
        """The next frame of these kinds (answering `re`); the frames before it are passed over."""
        while True:
            frame = await self.receive()
            if isinstance(frame, kinds) and (re is None or getattr(frame, "re", None) == re):
                return frame

    async def refused(self, frame: Frame) -> ErrorFrame:
        """Sends a frame that will be refused; returns the refusal."""
        await self.send(frame)
        return await self.until(ErrorFrame, re=getattr(frame, "id", None))

    async def open(self, persona: str, user: str = "You") -> ChatSnapshot:
        """Starts a chat."""
        request = new_id("r")
        await self.send(ChatOpen(id=request, persona=persona, user=user))
        return await self.until(ChatSnapshot, re=request)

    async def subscribe(self, chat: str, after: Place | None = None) -> Frame:
        """Watches a chat; returns the first frame of the answer."""
        request = new_id("r")
        await self.send(ChatSubscribe(id=request, chat=chat, after=after))
        return await self.until(Frame, re=request)

    async def say(self, chat: str, text: str, request: str | None = None) -> TurnAccepted:
        """Creates a turn and waits until it is accepted."""
        request = request or new_id("r")
        await self.send(TurnCreate(id=request, chat=chat, text=text))
        return await self.until(TurnAccepted, re=request)

    async def stop(self, turn: ReplyEvent) -> None:
        """Asks to stop a turn."""
        await self.send(TurnCancel(chat=turn.chat, turn=turn.turn))

    async def text(self, part: str) -> None:
        """Reads deltas until the text that was received in this socket contains `part`."""
        while part not in "".join(e.text for e in self.events if isinstance(e, TurnDelta)):
            await self.until(TurnDelta)

    async def end(self) -> Terminal:
        """The terminal event of the turn that is going on."""
        return await self.until(TurnDone, TurnCancelled, TurnFailed)

    async def closed(self) -> int:
        """Reads to the end; returns the close code."""
        async with asyncio.timeout(WITHIN):
            await self.socket.wait_closed()
        return self.socket.close_code or 1006


@contextlib.asynccontextmanager
async def connected(
    url: str,
    subprotocol: Subprotocol = Subprotocol.JSON,
    *,
    hello: bool = True,
    origin: str | None = None,
) -> AsyncGenerator[Client, None]:
    """A connected client of the server whose page is at `url`; says hello unless told not to."""
    from websockets.asyncio.client import connect
    from websockets.typing import Origin
    from websockets.typing import Subprotocol as Name

    async with connect(
        url.replace("http", "ws", 1) + "v1/ws",
        subprotocols=[Name(subprotocol.value)],
        origin=None if origin is None else Origin(origin),
        compression=None,
        max_size=None,
        proxy=None,
    ) as socket:
        client = Client(socket, subprotocol)
        if hello:
            await client.send(Hello(client="testing"))
            await client.until(Welcome)
        yield client


class PromptedBackend(Stateless):
    """A backend that says what it is prompted to, when it is: `say`, then `finish` or `fail`.

    `turns` are the turns it was given. `gate`, when set, holds back `start` until it is released.
    """

    name = "prompted"

    def __init__(self, *, context: int = 100_000, gate: asyncio.Event | None = None) -> None:
        self.turns: list[Turn] = []
        self.open_streams = 0
        self._context = context
        self._gate = gate
        self._lines: asyncio.Queue[TurnEvent | BackendError] = asyncio.Queue()
        self._started = False

    def say(self, text: str) -> None:
        """More text of the reply that is spoken, or of the next one."""
        self._lines.put_nowait(TextDelta(text))

    def finish(self, finished: Finished | None = None) -> None:
        """The end of the reply."""
        self._lines.put_nowait(finished or Finished(FinishReason.COMPLETE, Usage(3, 2, 1)))

    def fail(self, code: BackendErrorCode = BackendErrorCode.CRASHED) -> None:
        """A failure in the middle of the reply."""
        self._lines.put_nowait(BackendError(code, "it broke", retryable=True, retry_after=2))

    async def start(self) -> Capabilities:
        if self._gate is not None:
            await self._gate.wait()
        self._started = True
        return Capabilities(model="prompted", context=self._context)

    def status(self) -> BackendStatus:
        state = BackendState.READY if self._started else BackendState.STARTING
        return BackendStatus(state, "" if self._started else "waiting for the gate")

    async def stream(self, turn: Turn) -> AsyncGenerator[TurnEvent, None]:
        self.turns.append(turn)
        self.open_streams += 1
        try:
            while True:
                line = await self._lines.get()
                if isinstance(line, BackendError):
                    raise line
                yield line
                if isinstance(line, Finished):
                    return
        finally:
            self.open_streams -= 1

    async def count(self, texts: Sequence[str]) -> tuple[int, ...]:
        return tuple(len(text.split()) + 1 for text in texts)

    async def aclose(self) -> None:
        self._started = False
