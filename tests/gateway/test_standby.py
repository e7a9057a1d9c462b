"""gateway.standby: one start at a time, again when that can help, and costs asked for once."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from backends.api import BackendState, Capabilities
from backends.errors import BackendError, BackendErrorCode
from gateway.standby import Standby
from gateway.testing import PromptedBackend

if TYPE_CHECKING:
    from collections.abc import Sequence


class Flaky(PromptedBackend):
    """Fails as often as it is told to; counts starts and the texts it had to count."""

    def __init__(self, *failures: BackendError) -> None:
        super().__init__()
        self.failures = list(failures)
        self.starts = 0
        self.counted: list[str] = []

    async def start(self) -> Capabilities:
        self.starts += 1
        if self.failures:
            raise self.failures.pop(0)
        return await super().start()

    async def count(self, texts: Sequence[str]) -> tuple[int, ...]:
        self.counted += texts
        return await super().count(texts)


async def test_starts_once() -> None:
    """Many who wait share one start."""
    backend = Flaky()
    standby = Standby(backend)
    models = await asyncio.gather(*(standby.ready(5) for _ in range(5)))
    assert {m.model for m in models} == {"prompted"}
    assert backend.starts == 1
    assert standby.status().state is BackendState.READY


async def test_retryable_failure_is_tried_again() -> None:
    """After a failure that may pass, the next turn starts the backend again."""
    backend = Flaky(BackendError(BackendErrorCode.UNAVAILABLE, "busy", retryable=True))
    standby = Standby(backend)
    with pytest.raises(BackendError, match="busy"):
        await standby.ready(5)
    assert standby.status().detail == "busy"
    assert (await standby.ready(5)).model == "prompted"
    assert standby.status().state is BackendState.READY


async def test_final_failure_stays() -> None:
    """After a failure that cannot pass, nothing is tried again."""
    backend = Flaky(BackendError(BackendErrorCode.BAD_REQUEST, "no such model"))
    standby = Standby(backend)
    for _ in range(2):
        with pytest.raises(BackendError, match="no such model"):
            await standby.ready(5)
    assert backend.starts == 1
    assert standby.status().state is BackendState.DOWN


async def test_defect_is_internal() -> None:
    """A backend that raises something else is a defect, told as such."""

    class Broken(PromptedBackend):
        async def start(self) -> Capabilities:
            raise RuntimeError("oh")

    with pytest.raises(BackendError) as caught:
        await Standby(Broken()).ready(5)
    assert caught.value.code is BackendErrorCode.INTERNAL


async def test_costs_are_asked_once() -> None:
    """A text's cost is asked for once, until it is the oldest of too many."""
    backend = Flaky()
    standby = Standby(backend, keep_costs=2)
    assert await standby.costs(["a b", "c", "a b"]) == {"a b": 3, "c": 2}
    assert backend.counted == ["a b", "c"]
    await standby.costs(["c", "a b"])
    assert backend.counted == ["a b", "c"]
    await standby.costs(["d"])
    await standby.costs(["a b"])
    assert backend.counted == ["a b", "c", "d"]
    await standby.costs(["c"])
    assert backend.counted == ["a b", "c", "d", "c"]


async def test_close_while_starting() -> None:
    """Closing a backend that is starting ends the start."""
    standby = Standby(PromptedBackend(gate=asyncio.Event()))
    starting = standby.begin()
    await asyncio.sleep(0)
    await standby.aclose()
    assert starting.done()
