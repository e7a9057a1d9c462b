"""`greenroom chat`: a conversation in the terminal, through the server's WebSocket."""

from __future__ import annotations

import asyncio
import secrets
import signal
import sys
from typing import TYPE_CHECKING, TextIO, TypeVar
from urllib.parse import urlsplit

from backends.api import Role
from gateway.codec import Frame
from gateway.errors import StartError
from gateway.protocol import (
    SERVER_FRAMES,
    ChatOpen,
    ChatSnapshot,
    ChatSubscribe,
    ChatUpdated,
    ChatUse,
    ErrorFrame,
    Hello,
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
    from websockets.asyncio.client import ClientConnection

    from gateway.protocol import Message, Stats

__all__ = ["socket_url", "stats_line", "talk"]

F = TypeVar("F", bound=Frame)
LARGEST = 64 << 20
QUIT = ("/quit", "/exit")


def socket_url(url: str) -> str:
    """The address of the socket of the server whose page is at `url`. Raises `StartError`."""
    parts = urlsplit(url if "://" in url else f"http://{url}")
    schemes = {"http": "ws", "https": "wss", "ws": "ws", "wss": "wss"}
    if parts.scheme not in schemes or not parts.netloc:
        raise StartError(f"{url!r} is not the address of a server")
    return f"{schemes[parts.scheme]}://{parts.netloc}/v1/ws"


def stats_line(stats: Stats) -> str:
    """What a reply cost, in one quiet line."""
    cached = f", {stats.cached_tokens} from cache" if stats.cached_tokens else ""
    return (
        f"first token {stats.ttft_ms:.0f} ms · {stats.tokens_per_s:.1f} tokens/s · "
        f"{stats.prompt_tokens} prompt tokens{cached}"
    )


async def talk(
    url: str,
    persona: str,
    user: str,
    resume: str | None = None,
    *,
    backend: str | None = None,
    reading: TextIO | None = None,
    writing: TextIO | None = None,
) -> int:
    """Talks until `/quit` or the end of `reading`; returns the exit code.

    Raises `StartError` when no server answers or the server refuses the persona or backend.
    """
    from websockets.asyncio.client import connect
    from websockets.exceptions import ConnectionClosed, InvalidHandshake

    address = socket_url(url)
    try:
        socket = await connect(
            address,
            subprotocols=[Subprotocol.MSGPACK.value],  # type: ignore[list-item]
            compression=None,
            max_size=LARGEST,
            proxy=None,
        )
    except (OSError, TimeoutError, InvalidHandshake) as error:
        raise StartError(
            f"no greenroom server answers at {url} ({error}); start one with: greenroom run"
        ) from error
    terminal = _Terminal(socket, reading or sys.stdin, writing or sys.stdout)
    try:
        return await terminal.run(persona, user, resume, backend)
    except ConnectionClosed as error:
        code = error.rcvd.code if error.rcvd else 1006
        raise StartError(
            f"the server closed the connection ({code}); the conversation is kept: "
            f"go on with --resume {terminal.chat}"
        ) from error
    finally:
        await socket.close()


class _Terminal:
    """One conversation; `chat` is its id once it is open."""

    def __init__(self, socket: ClientConnection, reading: TextIO, writing: TextIO) -> None:
        self.chat = ""
        self._socket = socket
        self._reading = reading
        self._writing = writing
        self._name = ""
        self._turn: str | None = None

    async def run(self, persona: str, user: str, resume: str | None, backend: str | None) -> int:
        await self._request(Hello(id=_new_id(), client="terminal"), Welcome)
        if resume and backend:
            await self._request(ChatUse(id=_new_id(), chat=resume, backend=backend), ChatUpdated)
        request = (
            ChatSubscribe(id=_new_id(), chat=resume)
            if resume
            else ChatOpen(id=_new_id(), persona=persona, user=user, backend=backend)
        )
        snapshot = await self._request(request, ChatSnapshot)
        self.chat, self._name = snapshot.chat, _speaker(snapshot)
        for message in snapshot.messages:
            self._show(f"{message.name}: {message.text}\n")
        if snapshot.live:
            self._turn = snapshot.live.turn
            self._show(f"{self._name}: {snapshot.live.text}")
            await self._reply()
        while (line := await self._ask(snapshot.user)) is not None:
            if line.strip() in QUIT:
                break
            if line.strip():
                await self._say(line.strip())
        self._show(
            f"\n(kept; go on with: greenroom chat --persona {persona} --resume {self.chat})\n"
        )
        return 0

    async def _ask(self, user: str) -> str | None:
        self._show(f"{user}: ")
        line = await asyncio.to_thread(self._reading.readline)
        return line or None

    async def _say(self, text: str) -> None:
        request = _new_id()
        await self._send(TurnCreate(id=request, chat=self.chat, text=text))
        while True:
            frame = await self._receive()
            if isinstance(frame, ErrorFrame) and frame.re == request:
                self._show(f"! {frame.message}\n")
                return
            if isinstance(frame, TurnAccepted) and frame.re == request:
                self._turn = frame.turn
                break
        self._show(f"{self._name}: ")
        await self._reply()

    async def _reply(self) -> None:
        """Shows a reply to its end; Ctrl-C stops it."""
        loop = asyncio.get_running_loop()
        stops: set[asyncio.Task[None]] = set()

        def stop() -> None:
            cancel = TurnCancel(chat=self.chat, turn=self._turn or "")
            stops.add(asyncio.create_task(self._send(cancel)))

        loop.add_signal_handler(signal.SIGINT, stop)
        try:
            while not self._shown_to_end(await self._receive()):
                pass
        finally:
            loop.remove_signal_handler(signal.SIGINT)
            if stops:
                await asyncio.wait(stops)

    def _shown_to_end(self, frame: Frame) -> bool:
        match frame:
            case TurnDelta() if frame.turn == self._turn:
                self._show(frame.text)
                return False
            case TurnDone() if frame.turn == self._turn:
                self._close(frame.message, "" if frame.reason == "complete" else "cut at its limit")
            case TurnCancelled() if frame.turn == self._turn:
                self._close(frame.message, "stopped")
            case TurnFailed() if frame.turn == self._turn:
                self._close(frame.message, f"failed: {frame.error.message}")
            case _:
                return False
        return True

    def _close(self, message: Message, ending: str) -> None:
        parts = [ending] if ending else []
        if message.stats:
            parts.append(stats_line(message.stats))
        self._show("\n" + (self._quiet(f"  ({'; '.join(parts)})\n") if parts else ""))

    def _quiet(self, text: str) -> str:
        return f"\x1b[2m{text}\x1b[0m" if self._writing.isatty() else text

    def _show(self, text: str) -> None:
        # A model may write escape codes; on a terminal they could do more than colour.
        clean = (
            text
            if "\x1b[2m" in text
            else "".join(ch for ch in text if ch in "\n\t" or ch.isprintable())
        )
        self._writing.write(clean)
        self._writing.flush()

    async def _send(self, frame: Frame) -> None:
        await self._socket.send(encode(frame, Subprotocol.MSGPACK))

    async def _receive(self) -> Frame:
        return decode(await self._socket.recv(), Subprotocol.MSGPACK, SERVER_FRAMES)

    async def _request(self, asked: Hello | ChatUse | ChatSubscribe | ChatOpen, kind: type[F]) -> F:
        """Sends a request; returns its answer. Raises `StartError` when it is refused."""
        await self._send(asked)
        frame = await self._receive()
        if isinstance(frame, ErrorFrame):
            raise StartError(frame.message)
        assert isinstance(frame, kind), frame
        return frame


def _speaker(snapshot: ChatSnapshot) -> str:
    """The name that the character signs with: that of its last message, else its own."""
    signed = [m.name for m in snapshot.messages if m.role is Role.ASSISTANT]
    return signed[-1] if signed else snapshot.persona.name


def _new_id() -> str:
    return secrets.token_hex(12)
