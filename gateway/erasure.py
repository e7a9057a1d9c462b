"""Deleted is deleted: what a backend cached of a chat or a persona goes too, now or later.

A deletion is written down with the deletion itself and struck out when the backend has done it, so
one that is not running, or fails half-way, is asked again when it is ready and at the next start.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, NoReturn

import structlog

from backends.errors import BackendError
from gateway.composing import TENANT
from gateway.errors import HistoryError

if TYPE_CHECKING:
    from gateway.ensemble import Ensemble
    from gateway.history import History
    from gateway.standby import Standby

__all__ = ["Erasure"]

log = structlog.get_logger()

EVERY_SECONDS = 30.0
"""How often what is left over is tried again."""


class Erasure:
    """Carries out the deletions that the history has noted for each backend."""

    def __init__(
        self, history: History, ensemble: Ensemble, *, every: float = EVERY_SECONDS
    ) -> None:
        self._history = history
        self._ensemble = ensemble
        self._every = every
        self._more = asyncio.Event()
        self._lock = asyncio.Lock()

    @property
    def names(self) -> tuple[str, ...]:
        """The backends that a deletion must reach: all but those that keep nothing."""
        return tuple(s.backend.name for s in self._ensemble if s.backend.keeps)

    async def run(self) -> NoReturn:
        """Works until it is cancelled."""
        while True:
            with contextlib.suppress(HistoryError):
                await self.carry_out()
            self._more.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._every):
                    await self._more.wait()

    async def carry_out(self) -> bool:
        """Does what can be done now; whether nothing is left. Raises `HistoryError`."""
        async with self._lock:
            whole = True
            for standby in self._ensemble:
                whole &= await self._carry_out(standby)
            return whole

    async def _carry_out(self, standby: Standby) -> bool:
        name = standby.backend.name
        left = await self._history.erasures(name)
        if left and standby.capabilities is None:
            return False
        for number, owner in left:
            try:
                pieces = await standby.backend.forget(TENANT, owner)
            except BackendError as error:
                log.warning("erasure_failed", backend=name, owner=owner, problem=error.message)
                return False
            await self._history.erased(number)
            log.info("owner_erased", backend=name, owner=owner, pieces=pieces)
        return True
