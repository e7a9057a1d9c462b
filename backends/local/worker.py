"""The engine process: `python -m backends.local.worker DESCRIPTOR`.

Three threads: this one serves the connection (asyncio), one runs the engine, one renders prompts.
The connection is an inherited unix socket; its end, however the other side ended, ends the process,
so no engine is ever left behind.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import threading
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import TYPE_CHECKING

import structlog

from backends.api import Finished, TierCounters
from backends.errors import BackendError, BackendErrorCode
from backends.local import wire
from backends.local.errors import ModelError
from backends.local.progress import TerminalProgress
from kvstore.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from backends.api import Turn, TurnEvent
    from backends.local.assembly import Assembled
    from backends.local.settings import EngineSettings

__all__ = ["main"]

log = structlog.get_logger()

STOP_S = 8.0
"""How long the engine may take to write its cache at the end; below the client's own patience."""
READ_BYTES = 1 << 16
SWITCH_S = 0.0005
"""How long a thread may hold the interpreter's lock: the engine's has a device to feed."""


class ProgressFrames:
    """Tells the client and the terminal; the client at most once for each percent."""

    def __init__(self, send: Callable[[wire.ToClient], None]) -> None:
        self._send = send
        self._terminal = TerminalProgress()
        self._told: tuple[str, int] | None = None

    def __call__(self, label: str, done: int, total: int) -> None:
        self._terminal(label, done, total)
        now = (label, 100 * done // total if total else 100)
        if now != self._told:
            self._told = now
            self._send(wire.Progress(label, done, total))


class Worker:
    """Serves one connection from `Start` to its end."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._loop = asyncio.get_running_loop()
        self._inbox: asyncio.Queue[wire.ToWorker | None] = asyncio.Queue()  # None: the end
        self._renderer = ThreadPoolExecutor(1, thread_name_prefix="render")
        self._engine_ids: dict[int, int | None] = {}  # open streams; None while being rendered
        self._tasks: set[asyncio.Task[None]] = set()
        # What the engine said and nobody sent yet. One wake-up serves for all of a step: each would
        # make the engine's thread wait for the interpreter's lock.
        self._said: deque[tuple[int, TurnEvent | BackendError]] = deque()
        self._woken = False

    async def serve(self) -> int:
        """Returns the process's exit code."""
        gone = asyncio.create_task(self._receive())
        start = await self._inbox.get()
        if not isinstance(start, wire.Start):
            return 0 if start is None else 1
        assembled = await self._assemble(start.settings, gone)
        if assembled is None:
            return 0
        running = threading.Thread(target=_run, args=(assembled,), name="engine", daemon=True)
        running.start()
        self._send(wire.Ready(assembled.capabilities))
        while (message := await self._inbox.get()) is not None:
            self._obey(message, assembled)
        assembled.engine.stop()
        await asyncio.to_thread(running.join, STOP_S)
        return 1 if running.is_alive() else 0

    async def _receive(self) -> None:
        """Fills the inbox until the client closes, dies or breaks the rules."""
        frames = wire.Frames()
        try:
            while data := await self._reader.read(READ_BYTES):
                for body in frames.feed(data):
                    self._inbox.put_nowait(wire.read_to_worker(body))
        except ConnectionError:
            pass
        except wire.WireError as error:
            log.error("client_frame_broken", problem=error.problem)
        self._inbox.put_nowait(None)

    async def _assemble(
        self, settings: EngineSettings, gone: asyncio.Task[None]
    ) -> Assembled | None:
        """Loads in a thread of its own; None when it refused or the client went away."""
        loaded: asyncio.Future[Assembled] = self._loop.create_future()
        progress = ProgressFrames(lambda message: self._from_thread(self._send, message))

        def load() -> None:
            try:
                # Here, so that the socket's end is noticed while torch is imported.
                from backends.local.assembly import assemble

                done = assemble(settings, progress)
            except BaseException as error:
                self._from_thread(loaded.set_exception, error)
            else:
                self._from_thread(loaded.set_result, done)

        threading.Thread(target=load, name="load", daemon=True).start()
        ends: set[asyncio.Future[Assembled] | asyncio.Task[None]] = {loaded, gone}
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        if not loaded.done():
            return None
        try:
            return loaded.result()
        except Exception as error:
            self._send(wire.Refused(_refusal(error)))
            await gone
            return None

    def _obey(self, message: wire.ToWorker, assembled: Assembled) -> None:
        match message:
            case wire.Submit(call, turn):
                self._engine_ids[call] = None
                self._spawn(self._submit(call, turn, assembled))
            case wire.Cancel(call):
                id = self._engine_ids.pop(call, None)
                if id is not None:
                    assembled.engine.cancel(id)
            case wire.Count(call, texts):
                self._spawn(self._count(call, texts, assembled))
            case wire.Prefetch(turn):
                self._renderer.submit(assembled.engine.prefetch, turn)
            case wire.Retire(tenant, conversation):
                assembled.engine.retire(tenant, conversation)
            case wire.Forget(call, tenant, owner):
                assembled.engine.forget(
                    tenant,
                    owner,
                    lambda n, problem: self._from_thread(self._forgotten, call, n, problem),
                )
            case wire.AskTiers(call):
                stats = assembled.engine.store_stats()
                tiers = tuple(TierCounters(**asdict(tier)) for tier in stats.tiers)
                self._send(wire.Tiers(call, tiers))
            case wire.Start():
                log.warning("engine_started_twice")

    async def _submit(self, call: int, turn: Turn, assembled: Assembled) -> None:
        def emit(event: TurnEvent | BackendError) -> None:
            self._said.append((call, event))
            if not self._woken:
                self._woken = True
                self._from_thread(self._deliver)

        engine = assembled.engine
        id = await self._loop.run_in_executor(self._renderer, engine.submit, turn, emit)
        if call in self._engine_ids:
            self._engine_ids[call] = id
        else:  # cancelled, or ended, while it was being rendered
            engine.cancel(id)

    async def _count(self, call: int, texts: tuple[str, ...], assembled: Assembled) -> None:
        def costs() -> tuple[int, ...]:
            return tuple(map(assembled.template.cost, texts))

        try:
            answer = await self._loop.run_in_executor(self._renderer, costs)
        except Exception:
            log.exception("count_failed")
            error = BackendError(BackendErrorCode.INTERNAL, "the texts could not be counted")
            self._send(wire.Failed.of(call, error))
        else:
            self._send(wire.Counted(call, answer))

    def _forgotten(self, call: int, blocks: int, problem: str) -> None:
        if problem:
            error = BackendError(
                BackendErrorCode.INTERNAL, f"the KV could not be deleted whole: {problem}"
            )
            self._send(wire.Failed.of(call, error))
        else:
            self._send(wire.Forgotten(call, blocks))

    def _deliver(self) -> None:
        """Sends all that was said by now, in one go."""
        self._woken = False  # first, so that what is said meanwhile wakes us again
        frames = []
        while self._said:
            call, event = self._said.popleft()
            if call not in self._engine_ids:
                continue
            if not isinstance(event, BackendError):
                frames.append(wire.encode(wire.Event(call, event)))
            else:
                frames.append(wire.encode(wire.Failed.of(call, event)))
            if isinstance(event, BackendError | Finished):
                del self._engine_ids[call]
        if frames and not self._writer.is_closing():
            self._writer.write(b"".join(frames))

    def _send(self, message: wire.ToClient) -> None:
        if not self._writer.is_closing():
            self._writer.write(wire.encode(message))

    def _from_thread(self, call: Callable[..., object], *args: object) -> None:
        try:
            self._loop.call_soon_threadsafe(call, *args)
        except RuntimeError:
            # The loop is closed: the client is gone and the process about to be.
            return

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _run(assembled: Assembled) -> None:
    try:
        assembled.engine.run()
    except BaseException:
        # Turns would wait for ever: die, so that the client fails them and starts another.
        log.exception("engine_loop_failed")
        os._exit(70)


def _refusal(error: Exception) -> str:
    """One line for people; a defect of ours goes to the log whole."""
    if isinstance(error, ModelError | StoreError):
        return error.message
    if isinstance(error, OSError | ValueError):
        return str(error).splitlines()[0]
    log.error("engine_not_assembled", exc_info=error)
    return f"the engine could not start: {type(error).__name__} (see the log)"


async def _serve(descriptor: int) -> int:
    reader, writer = await asyncio.open_unix_connection(sock=socket.socket(fileno=descriptor))
    return await Worker(reader, writer).serve()


def _configure_logs() -> None:
    """To stderr, from info on, without the locals in tracebacks: they hold what people wrote."""
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.dev.ConsoleRenderer(
                colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
            ),
        ],
        wrapper_class=structlog.make_filtering_bound_logger("info"),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


def main() -> None:
    """Serves the socket whose descriptor is the only argument; exits without awaiting threads."""
    _configure_logs()
    sys.setswitchinterval(SWITCH_S)
    try:
        code = asyncio.run(_serve(int(sys.argv[1])))
    except KeyboardInterrupt:
        code = 130
    sys.stderr.flush()
    # A thread that still loads or computes has nobody to do it for.
    os._exit(code)


if __name__ == "__main__":
    main()
