"""The writes behind the reply: one thread, a bounded queue, batches of about 8 MB."""

from __future__ import annotations

import queue
import threading
import time
from typing import TYPE_CHECKING

import structlog

from kvstore.api import Block

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from kvstore.api import BlockKey, Tier
    from kvstore.ends import Ends

__all__ = ["Writer"]

log = structlog.get_logger()

BATCH_BYTES = 8 << 20


class Writer:
    """Carries blocks to `tiers`, and runs what must happen in order with that."""

    def __init__(self, tiers: Sequence[Tier], queue_bytes: int, ends: Ends) -> None:
        self._tiers = tuple(tiers)
        self._queue_bytes = queue_bytes
        self._ends = ends
        self._lock = threading.Lock()  # guards the next three
        self._pending: set[BlockKey] = set()  # queued or being written
        self._queued = 0  # their bytes
        self._dropped = 0
        self._abandoned = False
        self._orders: queue.SimpleQueue[Block | Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="kv-writer", daemon=True)
        self._thread.start()

    def queue(self, blocks: Iterable[Block]) -> int:
        """Queues what fits; says how many of the blocks are queued now."""
        queued = 0
        for block in blocks if self._tiers else ():
            size = len(block.payload)
            with self._lock:
                if block.key in self._pending:
                    queued += 1
                    continue
                if self._queued + size > self._queue_bytes:
                    self._dropped += 1
                    continue
                self._pending.add(block.key)
                self._queued += size
            self._orders.put(block)
            queued += 1
        return queued

    def run(self, order: Callable[[], None]) -> None:
        """Calls `order`, which does not raise, after everything that is queued now."""
        self._orders.put(order)

    def pending(self) -> set[BlockKey]:
        """The keys that are queued or being written."""
        with self._lock:
            return set(self._pending)

    def counts(self) -> tuple[int, int]:
        """Blocks dropped so far, bytes queued now."""
        with self._lock:
            return self._dropped, self._queued

    def close(self, deadline: float) -> bool:
        """Writes what is queued until `deadline` (monotonic seconds); whether all of it was."""
        self._orders.put(None)
        self._thread.join(max(0.0, deadline - time.monotonic()))
        self._abandoned = self._thread.is_alive()
        return not self._abandoned

    def _work(self) -> None:
        ended = False
        while not ended and not self._abandoned:
            batch: list[Block] = []
            size = 0
            order = self._orders.get()
            while isinstance(order, Block):
                batch.append(order)
                size += len(order.payload)
                if size >= BATCH_BYTES or self._orders.empty():
                    break
                order = self._orders.get()
            if batch:
                self._write(batch, size)
            if order is None:
                ended = True
            elif not isinstance(order, Block):
                order()

    def _write(self, batch: list[Block], size: int) -> None:
        for tier in self._tiers:
            try:
                tier.put(batch)
            except Exception:
                log.exception("kv_write_failed", tier=tier.name)
        with self._lock:
            self._pending.difference_update(block.key for block in batch)
            self._queued -= size
        if self._ends.is_stale:
            self._ends.rebuild(self.pending())
