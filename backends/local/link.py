"""One engine process and the connection to it, as the gateway's side sees them. No torch.

A pair of connected unix sockets joins the two: no path, nothing left behind, and the end of either
process is an end of file for the other.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

import backends
from backends.errors import BackendError, BackendErrorCode
from backends.local import wire

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from backends.api import Capabilities
    from backends.local.settings import EngineSettings

__all__ = ["Call", "EngineDied", "EngineRefused", "Link"]

log = structlog.get_logger()

CLOSE_GRACE_S = 10.0
"""How long an engine may write its cache behind an orderly end before it is killed."""
READ_BYTES = 1 << 16


class EngineDied(Exception):
    """The process ended before it was ready; `how` says by what."""

    def __init__(self, how: str) -> None:
        super().__init__(how)
        self.how = how


class EngineRefused(Exception):
    """The engine says that it cannot start; `line` is its reason, for people."""

    def __init__(self, line: str) -> None:
        super().__init__(line)
        self.line = line


Answer = wire.Event | wire.Counted | wire.Forgotten | wire.Tiers


@dataclass(slots=True)
class Call:
    """One stream or count on a link; read its answers in order."""

    id: int
    answers: asyncio.Queue[Answer | BackendError] = field(default_factory=asyncio.Queue)
    ended: bool = False

    async def answer(self) -> Answer:
        """The next answer. Raises the `BackendError` that ended the call instead."""
        answer = await self.answers.get()
        if isinstance(answer, BackendError):
            self.ended = True
            raise answer
        return answer


class Link:
    """A ready engine process. Made by `open`."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self.capabilities: Capabilities
        self.alive = True
        self._process = process
        self._writer = writer
        self._messages = _messages(reader)
        self._calls: dict[int, Call] = {}
        self._last_call = 0

    @property
    def pid(self) -> int:
        return self._process.pid

    @classmethod
    async def open(
        cls, settings: EngineSettings, on_progress: Callable[[wire.Progress], None]
    ) -> Link:
        """Starts a process and waits until it is ready.

        Raises `EngineRefused` or `EngineDied`. Cancelling it ends the process.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                process = await _spawn(theirs.fileno())
            except BaseException:
                ours.close()
                raise
        reader, writer = await asyncio.open_unix_connection(sock=ours)
        link = cls(process, reader, writer)
        try:
            link._send(wire.Start(settings))
            await link._wait_ready(on_progress)
        except BaseException:
            await asyncio.shield(link._end(grace=0.0))
            raise
        return link

    async def _wait_ready(self, on_progress: Callable[[wire.Progress], None]) -> None:
        async for message in self._messages:
            match message:
                case wire.Progress():
                    on_progress(message)
                case wire.Ready(capabilities):
                    self.capabilities = capabilities
                    return
                case wire.Refused(line):
                    raise EngineRefused(line)
                case _:
                    raise EngineRefused(f"the engine sent {type(message).__name__} too early")
        await self._process.wait()
        raise EngineDied(_how(self._process.returncode))

    async def serve(self, on_lost: Callable[[], None]) -> str:
        """Hands answers to their calls until the process ends; says how it ended.

        `on_lost` is called as soon as the connection is gone; then every open call fails as
        CRASHED, and the process is reaped.
        """
        try:
            async for message in self._messages:
                self._hand_out(message)
        finally:
            self.alive = False
            on_lost()
            self._fail_calls(
                BackendError(
                    BackendErrorCode.CRASHED, "the engine died during the turn", retryable=True
                )
            )
        await self._end(grace=1.0)
        return _how(self._process.returncode)

    @contextlib.contextmanager
    def call(self, make: Callable[[int], wire.ToWorker]) -> Iterator[Call]:
        """Sends `make(call id)`; leaving before the call `ended` cancels it.

        Raises `BackendError` (BAD_REQUEST) when the message cannot be written.
        """
        self._last_call += 1
        call = Call(self._last_call)
        try:
            self._send(make(call.id))
        except wire.WireError as error:
            raise BackendError(BackendErrorCode.BAD_REQUEST, error.problem) from error
        self._calls[call.id] = call
        try:
            yield call
        finally:
            del self._calls[call.id]
            if not call.ended and self.alive:
                self._send(wire.Cancel(call.id))

    def tell(self, message: wire.Prefetch | wire.Retire) -> None:
        """Sends what has no answer. A message that cannot be written is logged: it is a hint."""
        try:
            self._send(message)
        except wire.WireError as error:
            log.warning("hint_not_sent", problem=error.problem)

    async def close(self) -> None:
        """Ends every open call as UNAVAILABLE and the process in order, by force if need be."""
        self.alive = False
        self._fail_calls(BackendError(BackendErrorCode.UNAVAILABLE, "the backend is closed"))
        await self._end(grace=CLOSE_GRACE_S)

    def _hand_out(self, message: wire.ToClient) -> None:
        match message:
            case (
                wire.Event(call=id)
                | wire.Counted(call=id)
                | wire.Forgotten(call=id)
                | wire.Tiers(call=id)
            ):
                if (call := self._calls.get(id)) is not None:
                    call.answers.put_nowait(message)
            case wire.Failed(call=id):
                if (call := self._calls.get(id)) is not None:
                    call.answers.put_nowait(message.error())
            case _:
                log.warning("engine_message_unexpected", kind=type(message).__name__)

    def _fail_calls(self, error: BackendError) -> None:
        for call in self._calls.values():
            call.answers.put_nowait(error)

    def _send(self, message: wire.ToWorker) -> None:
        frame = wire.encode(message)
        if not self._writer.is_closing():
            self._writer.write(frame)

    async def _end(self, *, grace: float) -> None:
        """Closes the connection, which is the order to exit, and reaps the process."""
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()
        try:
            await asyncio.wait_for(self._process.wait(), grace)
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()


async def _spawn(descriptor: int) -> asyncio.subprocess.Process:
    """A worker in its own session: a terminal's Ctrl-C is the gateway's to handle."""
    # -P and our own path: the folder that the gateway runs in must not shadow the packages.
    root = str(Path(backends.__file__).parent.parent)
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    # By default a thread that waits for the others spins, and on a machine that does anything
    # else it spins on the core that the others need: a decode then takes ten times as long.
    env = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-P",
        "-m",
        "backends.local.worker",
        str(descriptor),
        pass_fds=(descriptor,),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        env=env,
        start_new_session=True,
    )


async def _messages(reader: asyncio.StreamReader) -> AsyncIterator[wire.ToClient]:
    """The engine's messages until it closes, dies or breaks the rules."""
    frames = wire.Frames()
    try:
        while data := await reader.read(READ_BYTES):
            for body in frames.feed(data):
                yield wire.read_to_client(body)
    except ConnectionError:
        return
    except wire.WireError as error:
        log.error("engine_frame_broken", problem=error.problem)


def _how(returncode: int | None) -> str:
    if returncode is not None and returncode < 0:
        with contextlib.suppress(ValueError):
            return f"killed by {signal.Signals(-returncode).name}"
    return f"exit code {returncode}"
