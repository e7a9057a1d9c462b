"""The wiring of a running server, and nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import errno
from typing import TYPE_CHECKING, NoReturn

import structlog
from aiohttp import web

from backends.errors import BackendError
from backends.registry import make
from gateway.characters import Characters
from gateway.chats import Chats
from gateway.composing import Composer
from gateway.ensemble import Ensemble
from gateway.erasure import Erasure
from gateway.errors import StartError
from gateway.folder import DataFolder
from gateway.http import Parts, make_app
from gateway.metrics import Metrics
from gateway.presence import Presence
from gateway.protocol import CloseCode
from gateway.release import release
from gateway.sql_characters import SqlRevisions
from gateway.sql_history import SqlHistory
from gateway.standby import Standby
from gateway.turns import Turns
from personas.library import Library
from personas.persona import CardError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backends.api import Backend, Capabilities
    from gateway.config import Config
    from personas.limits import ImportLimits

__all__ = ["Server", "prepare", "serve"]

log = structlog.get_logger()

COME_BACK_MS = 1000
CLOSE_WITHIN = 3.0
"""Seconds that the clients have for their side of the closing handshake."""


class Server:
    """A server that listens; `stop` ends it. Made by `serve`."""

    def __init__(self, parts: Parts, config: Config, cleanup: contextlib.AsyncExitStack) -> None:
        self.parts = parts
        self.port = 0
        self._config = config
        self._cleanup = cleanup

    @property
    def url(self) -> str:
        """The address of the page."""
        host = self._config.server.host
        host = "127.0.0.1" if host in ("0.0.0.0", "") else "[::1]" if host == "::" else host
        return f"http://{f'[{host}]' if ':' in host and '[' not in host else host}:{self.port}/"

    async def stop(self) -> None:
        """Says goodbye, lets live replies end or stores them as cut, and frees everything."""
        log.info("server_stopping", live=self.parts.chats.speaking())
        for session in tuple(self.parts.sessions):
            session.goodbye("shutdown", COME_BACK_MS)
        await self.parts.turns.drain(self._config.server.grace_seconds)
        sessions = tuple(self.parts.sessions)
        for session in sessions:
            session.end(CloseCode.DRAINING)
        # aiohttp reads no more once it cleans up, so the closing handshakes come first.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_WITHIN):
                await asyncio.gather(*(session.closed.wait() for session in sessions))
        await self._cleanup.aclose()
        log.info("server_stopped")


async def serve(
    config: Config,
    *,
    backend: Backend | None = None,
    more: Sequence[Backend] = (),
    library: Library | None = None,
) -> Server:
    """Starts a server: it listens at once, the default backend loads in the background.

    `backend` and `more` stand in for the configured default and others to choose from.

    Raises `StartError` (port, data folder, database, unknown backend).
    """
    async with contextlib.AsyncExitStack() as stack:
        folder = DataFolder(config.data.folder)
        stack.callback(folder.close)
        history = await SqlHistory.open(folder.path / "conversations.sqlite")
        stack.push_async_callback(history.aclose)
        made = (backend,) if backend else _backends(config)
        ensemble = Ensemble([Standby(one) for one in (*made, *more)])
        stack.push_async_callback(ensemble.aclose)
        if library is None:
            library = await asyncio.to_thread(_library, folder, config.import_limits())
        characters = Characters(library, SqlRevisions(history))
        await characters.open()
        chats = Chats(history)
        composer = Composer(config.make_sampling, config.server.ready_seconds)
        metrics = Metrics()
        turns = Turns(
            chats=chats,
            history=history,
            characters=characters,
            ensemble=ensemble,
            composer=composer,
            limits=config.server,
            metrics=metrics,
        )
        presence = Presence(characters, ensemble, composer)
        stack.push_async_callback(presence.aclose)
        erasure = Erasure(history, ensemble)
        parts = Parts(
            release(),
            config.server,
            config.import_limits(),
            folder.path,
            history,
            characters,
            ensemble,
            composer,
            chats,
            turns,
            presence,
            erasure,
            metrics,
        )
        runner = web.AppRunner(make_app(parts), access_log=None, shutdown_timeout=2.0)
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        for work in (characters.follow(), erasure.run()):
            stack.push_async_callback(_cancel, asyncio.create_task(work))
        server = Server(parts, config, stack.pop_all())
    try:
        server.port = await _listen(runner, config)
    except BaseException:
        await server.stop()
        raise
    ensemble.default.begin()
    log.info("server_started", url=server.url)
    return server


async def prepare(config: Config) -> Capabilities:
    """Starts the configured backend once, which makes its weights ready, and closes it.

    Raises `StartError`.
    """
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(DataFolder(config.data.folder).close)
        backend = _backends(config)[0]
        stack.push_async_callback(backend.aclose)
        try:
            return await backend.start()
        except BackendError as error:
            raise StartError(error.message) from error


def _backends(config: Config) -> tuple[Backend, ...]:
    """The default backend, then the others that are offered, each once."""
    remote = config.remote_settings()
    names = dict.fromkeys((config.backend.name, *config.backend.offer))
    if remote:
        names |= {remote.name: None}
    try:
        return tuple(make(name, config.engine_settings(), remote) for name in names)
    except BackendError as error:
        raise StartError(error.message) from error


async def _cancel(task: asyncio.Task[NoReturn]) -> None:
    task.cancel()
    await asyncio.wait({task})


def _library(folder: DataFolder, limits: ImportLimits) -> Library:
    own = folder.path / "personas"
    try:
        own.mkdir(exist_ok=True)
        return Library.open(own, limits)
    except OSError as error:
        raise StartError(f"the folder {own} cannot be made: {error.strerror}") from error
    except CardError as error:
        raise StartError(error.message) from error


async def _listen(runner: web.AppRunner, config: Config) -> int:
    host, port = config.server.host, config.server.port
    try:
        await web.TCPSite(runner, host, port).start()
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise StartError(
                f"port {port} on {host} is in use; choose another with --port, 0 for a free one"
            ) from error
        raise StartError(f"cannot listen on {host}:{port}: {error.strerror or error}") from error
    return int(runner.addresses[0][1])
