"""The local engine as a backend: starts its process, watches it, speaks through it. No torch.

States, as `status` tells them:

    DOWN      not started, closed, refused to start, or died too often before it was ready
    STARTING  loading; or it died and is being started again, after a bounded pause
    READY     takes turns

A turn that comes while the engine is being started again waits for it, within a bound.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

import structlog

from backends.api import BackendState, BackendStatus, Finished
from backends.errors import BackendError, BackendErrorCode
from backends.local import wire
from backends.local.link import EngineDied, EngineRefused, Link

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from backends.api import Capabilities, TierCounters, Turn, TurnEvent
    from backends.local.settings import EngineSettings

__all__ = ["LocalBackend"]

log = structlog.get_logger()

START_TRIES = 3
"""How often in a row the process may die before it is ready."""
PAUSE_S, LONGEST_PAUSE_S = 0.1, 10.0
"""The pause before the first restart; it doubles with each death in a row."""
STABLE_S = 60.0
"""An engine that lived this long since it was ready starts the count of deaths afresh."""
RESTART_WAIT_S = 60.0
"""How long a turn waits for an engine that is being started again."""


class LocalBackend:
    """Implements `backends.api.Backend`."""

    name = "local"
    keeps = True

    def __init__(self, settings: EngineSettings) -> None:
        self._settings = settings
        self._status = BackendStatus(BackendState.DOWN, "not started")
        self._settled = asyncio.Event()  # set while the state is not STARTING
        self._settled.set()
        self._supervisor: asyncio.Task[None] | None = None
        self._link: Link | None = None
        self._closed = False

    async def start(self) -> Capabilities:
        self._refuse_when_closed()
        if self._supervisor is None or self._supervisor.done():
            self._become(BackendState.STARTING, "starting the engine")
            self._supervisor = asyncio.create_task(self._supervise(), name="local engine")
        return (await self._ready_link()).capabilities

    def status(self) -> BackendStatus:
        return self._status

    @property
    def pid(self) -> int | None:
        """The engine process that is ready now."""
        return self._link.pid if self._link is not None else None

    async def stream(self, turn: Turn) -> AsyncGenerator[TurnEvent, None]:
        link = await self._ready_link(RESTART_WAIT_S)
        with link.call(lambda id: wire.Submit(id, turn)) as call:
            while not call.ended:
                answer = await call.answer()
                if not isinstance(answer, wire.Event):
                    raise _unexpected(answer)
                call.ended = isinstance(answer.event, Finished)
                yield answer.event

    async def count(self, texts: Sequence[str]) -> tuple[int, ...]:
        link = await self._ready_link(RESTART_WAIT_S)
        with link.call(lambda id: wire.Count(id, tuple(texts))) as call:
            answer = await call.answer()
            call.ended = True
            if not isinstance(answer, wire.Counted):
                raise _unexpected(answer)
            return answer.costs

    async def prefetch(self, turn: Turn) -> None:
        if self._link is not None:
            self._link.tell(wire.Prefetch(turn))

    async def retire(self, tenant: str, conversation: str) -> None:
        if self._link is not None:
            self._link.tell(wire.Retire(tenant, conversation))

    async def forget(self, tenant: str, owner: str | None) -> int:
        link = await self._ready_link(RESTART_WAIT_S)
        with link.call(lambda id: wire.Forget(id, tenant, owner)) as call:
            answer = await call.answer()
            call.ended = True
            if not isinstance(answer, wire.Forgotten):
                raise _unexpected(answer)
            return answer.blocks

    async def tiers(self) -> tuple[TierCounters, ...]:
        link = await self._ready_link(0.0)
        with link.call(wire.AskTiers) as call:
            answer = await call.answer()
            call.ended = True
            if not isinstance(answer, wire.Tiers):
                raise _unexpected(answer)
            return answer.tiers

    async def aclose(self) -> None:
        self._closed = True
        self._become(BackendState.DOWN, "closed")
        link, self._link = self._link, None
        if link is not None:
            await link.close()
        if self._supervisor is not None:
            self._supervisor.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._supervisor

    async def _ready_link(self, limit_s: float | None = None) -> Link:
        """The engine, once it is ready. Raises `BackendError` (UNAVAILABLE) if it will not be."""
        try:
            async with asyncio.timeout(limit_s):
                await self._settled.wait()
        except TimeoutError:
            raise BackendError(
                BackendErrorCode.UNAVAILABLE, self._status.detail, retryable=True
            ) from None
        self._refuse_when_closed()
        if self._link is None:
            raise BackendError(BackendErrorCode.UNAVAILABLE, self._status.detail)
        return self._link

    async def _supervise(self) -> None:
        """Keeps one engine running until it refuses to start or dies too often on the way."""
        loop = asyncio.get_running_loop()
        deaths = early_deaths = 0
        while True:
            try:
                link = await Link.open(self._settings, self._show_progress)
            except EngineRefused as refused:
                log.error("engine_refused", reason=refused.line)
                self._become(BackendState.DOWN, refused.line)
                return
            except EngineDied as died:
                how = died.how
                early_deaths += 1
                if early_deaths == START_TRIES:
                    line = f"the engine died {early_deaths} times before it was ready ({how})"
                    log.error("engine_abandoned", how=how, deaths=early_deaths)
                    self._become(BackendState.DOWN, line)
                    return
            else:
                early_deaths = 0
                ready_at = loop.time()
                how = await self._serve(link)
                if self._closed:
                    return
                if loop.time() - ready_at > STABLE_S:
                    deaths = 0
            deaths += 1
            pause = min(LONGEST_PAUSE_S, PAUSE_S * 2 ** min(deaths - 1, 20))
            log.error("engine_died", how=how, deaths=deaths, pause_s=pause)
            await asyncio.sleep(pause)

    async def _serve(self, link: Link) -> str:
        """Uses the engine until it dies; says how it died."""
        self._link = link
        self._become(BackendState.READY, f"{link.capabilities.model} (process {link.pid})")
        log.info("engine_ready", pid=link.pid, model=link.capabilities.model)
        try:
            return await link.serve(self._lost)
        except asyncio.CancelledError:
            await asyncio.shield(link.close())
            raise

    def _lost(self) -> None:
        if not self._closed:
            self._link = None
            self._become(BackendState.STARTING, "the engine died and is being started again")

    def _show_progress(self, progress: wire.Progress) -> None:
        share = 100 * progress.done // progress.total if progress.total else 100
        self._become(BackendState.STARTING, f"{progress.label} ({share} %)")

    def _become(self, state: BackendState, detail: str) -> None:
        if self._closed:
            state, detail = BackendState.DOWN, "closed"
        if state is not self._status.state:
            log.info("engine_state_changed", state=state, detail=detail)
        self._status = BackendStatus(state, detail)
        if state is BackendState.STARTING:
            self._settled.clear()
        else:
            self._settled.set()

    def _refuse_when_closed(self) -> None:
        if self._closed:
            raise BackendError(BackendErrorCode.UNAVAILABLE, "the backend is closed")


def _unexpected(answer: object) -> BackendError:
    return BackendError(
        BackendErrorCode.INTERNAL, f"the engine answered with {type(answer).__name__}"
    )
