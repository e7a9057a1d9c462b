"""Keeps one backend started, so that the page opens before the model is loaded."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import TYPE_CHECKING

import structlog

from backends.api import BackendState, BackendStatus
from backends.errors import BackendError, BackendErrorCode

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from backends.api import Backend, Capabilities

__all__ = ["Standby"]

log = structlog.get_logger()


class Standby:
    """A backend that starts in the background, and the token costs it was asked for."""

    def __init__(self, backend: Backend, keep_costs: int = 16_384) -> None:
        self.backend = backend
        self.capabilities: Capabilities | None = None
        self.failure: BackendError | None = None
        self._starting: asyncio.Task[None] | None = None
        self._costs: OrderedDict[str, int] = OrderedDict()
        self._keep_costs = keep_costs

    @property
    def begun(self) -> bool:
        """Somebody asked for it; until then it costs nothing."""
        return self._starting is not None

    def begin(self) -> asyncio.Task[None]:
        """Starts the backend if that is not done or under way; the task never raises.

        One that went down is started again, unless it said that this is of no use.
        """
        down = self.capabilities is None or self.backend.status().state is BackendState.DOWN
        hope = self.failure is None or self.failure.retryable
        if self._starting is None or (self._starting.done() and down and hope):
            self._starting = asyncio.create_task(self._start())
        return self._starting

    async def _start(self) -> None:
        log.info("backend_starting", backend=self.backend.name)
        try:
            self.capabilities = await self.backend.start()
        except BackendError as error:
            self.failure = error
            log.error("backend_failed", backend=self.backend.name, error=str(error))
        except Exception:
            log.exception("backend_failed", backend=self.backend.name)
            self.failure = BackendError(
                BackendErrorCode.INTERNAL, "the backend broke while it started; see the log"
            )
        else:
            self.failure = None
            log.info("backend_ready", backend=self.backend.name, model=self.capabilities.model)

    async def ready(self, within: float) -> Capabilities:
        """Waits at most `within` seconds. Raises `BackendError`."""
        await asyncio.wait({self.begin()}, timeout=within)
        if self.failure is not None:
            raise self.failure
        if self.capabilities is not None:
            return self.capabilities
        detail = self.backend.status().detail
        raise BackendError(
            BackendErrorCode.UNAVAILABLE,
            "the model is still loading" + (f": {detail}" if detail else ""),
            retryable=True,
            retry_after=5.0,
        )

    def status(self) -> BackendStatus:
        """As the backend sees it, or why it did not start."""
        if self.failure is not None:
            return BackendStatus(BackendState.DOWN, self.failure.message)
        return self.backend.status()

    async def costs(self, texts: Sequence[str]) -> Mapping[str, int]:
        """The tokens each text costs; asks the backend only for those it was not asked before."""
        new = [text for text in dict.fromkeys(texts) if text not in self._costs]
        if new:
            self._costs.update(zip(new, await self.backend.count(new), strict=True))
        costs = {text: self._costs[text] for text in texts}
        for text in costs:
            self._costs.move_to_end(text)
        while len(self._costs) > max(self._keep_costs, len(costs)):
            self._costs.popitem(last=False)
        return costs

    async def aclose(self) -> None:
        """Closes the backend. Idempotent."""
        if self._starting is not None and not self._starting.done():
            self._starting.cancel()
            await asyncio.wait({self._starting})
        await self.backend.aclose()
