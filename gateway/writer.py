"""One thread that owns the database: jobs in order, those that wait together share one commit."""

from __future__ import annotations

import asyncio
import queue
import threading
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Connection, Engine

__all__ = ["Writer"]

R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class _Job(Generic[R]):
    work: Callable[[Connection], R]
    future: Future[R]

    def attempt(self, connection: Connection) -> Callable[[], None]:
        """Runs in a savepoint; returns what tells the waiter once the batch is committed."""
        try:
            with connection.begin_nested():
                result = self.work(connection)
        except Exception as error:
            failure = error  # the name of the handler is gone when the callback runs
            return lambda: self.future.set_exception(failure)
        return lambda: self.future.set_result(result)


class Writer:
    """Runs jobs against the engine on its own thread."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._jobs: queue.SimpleQueue[_Job[object] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._loop, name="history", daemon=True)
        self._closed = False
        self._thread.start()

    async def run(self, work: Callable[[Connection], R]) -> R:
        """Returns when the work is committed. Raises what it or the commit raised."""
        if self._closed:
            raise RuntimeError("the history is closed")
        future: Future[R] = Future()
        self._jobs.put(_Job(work, future))  # type: ignore[arg-type]
        return await asyncio.wrap_future(future)

    async def aclose(self) -> None:
        """Runs what waits, then ends the thread. Idempotent."""
        self._closed = True
        self._jobs.put(None)
        await asyncio.to_thread(self._thread.join)

    def _loop(self) -> None:
        last = False
        while not last:
            batch = [self._jobs.get()]
            while not self._jobs.empty():
                batch.append(self._jobs.get())
            last = None in batch
            # A job whose waiter is gone before it began is dropped; after this none can be.
            jobs = [j for j in batch if j and j.future.set_running_or_notify_cancel()]
            if jobs:
                self._commit(jobs)

    def _commit(self, jobs: list[_Job[object]]) -> None:
        try:
            with self._engine.begin() as connection:
                answers = [job.attempt(connection) for job in jobs]
        except Exception as error:
            for job in jobs:
                job.future.set_exception(error)
        else:
            for answer in answers:
                answer()
