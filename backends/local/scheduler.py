"""Who runs next: continuous batching under a token budget. Pure and deterministic.

One step of the engine:

    late()      who has waited too long and is to be refused
    admit()     queued -> running, up to `max_running`, round robin over tenants
    plan()      every decode (one token each), then prefill chunks while the budget lasts

The scheduler reads each request's state and lengths and keeps no copy of them; it neither moves a
request nor knows what a token is.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from backends.local.request import Request, State

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Full", "Limits", "Plan", "Scheduler", "Slice"]


class Full(Exception):
    """The queue holds `max_queued` requests already."""

    def __init__(self, max_queued: int) -> None:
        super().__init__(max_queued)
        self.max_queued = max_queued

    def __str__(self) -> str:
        return f"{self.max_queued} turns are waiting already"


@dataclass(frozen=True, slots=True)
class Limits:
    """The scheduler's bounds. Raises `ValueError` where they contradict each other.

    Who has waited for `max_wait` seconds and does not run yet is refused.
    `step_tokens` must cover `max_running`, so that a step always has room for every decode and,
    while anyone prefills, for at least one token of prefill.
    """

    max_running: int = 8
    max_queued: int = 64
    step_tokens: int = 256
    max_wait: float = 60.0

    def __post_init__(self) -> None:
        if self.max_running < 1:
            raise ValueError(f"max_running must be at least 1: {self.max_running}")
        if self.max_queued < 1:
            raise ValueError(f"max_queued must be at least 1: {self.max_queued}")
        if self.max_wait <= 0:
            raise ValueError(f"max_wait must be above 0: {self.max_wait}")
        if self.step_tokens < self.max_running:
            raise ValueError(
                f"step_tokens ({self.step_tokens}) must not be below "
                f"max_running ({self.max_running})"
            )


class Slice(NamedTuple):
    """The tokens [start, end) of a request that a step computes."""

    request: Request
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Plan:
    """One step: decodes first. Empty when nobody can run now."""

    slices: tuple[Slice, ...]

    @property
    def token_count(self) -> int:
        return sum(s.end - s.start for s in self.slices)


class Scheduler:
    """Holds the queue and the running set. Every method is O(requests held)."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._queues: dict[str, deque[Request]] = {}
        self._running: dict[int, Request] = {}
        # When each was last served, on one counter; the least recently served goes first. Who is
        # new joins at the end, so that leaving and coming back wins nothing.
        self._clock = 0
        self._tenant_admitted: dict[str, int] = {}
        self._tenant_served: dict[str, int] = {}
        self._request_served: dict[int, int] = {}

    @property
    def queued(self) -> tuple[Request, ...]:
        """Those that wait, by tenant, each tenant's in order of arrival."""
        return tuple(request for queue in self._queues.values() for request in queue)

    @property
    def running(self) -> tuple[Request, ...]:
        """Those admitted and not removed, in order of admission."""
        return tuple(self._running.values())

    def add(self, request: Request) -> None:
        """Queues a request; raises `Full` when the queue is at its bound."""
        if sum(len(queue) for queue in self._queues.values()) >= self._limits.max_queued:
            raise Full(self._limits.max_queued)
        self._queues.setdefault(request.tenant, deque()).append(request)
        self._tenant_admitted.setdefault(request.tenant, self._tick())

    def remove(self, request: Request) -> None:
        """Forgets a request, queued or running; unknown ones are fine."""
        self._running.pop(request.id, None)
        self._request_served.pop(request.id, None)
        queue = self._queues.get(request.tenant)
        if queue is not None and request in queue:
            queue.remove(request)
        self._forget_idle_tenant(request.tenant)

    def admit(
        self, fits: Callable[[Request], bool] = lambda _: True, most: int | None = None
    ) -> tuple[Request, ...]:
        """Moves requests, at most so many, into the running set and names them; the caller starts
        their work.

        `fits` is asked of the one whose turn it is; when it says no, everybody waits, so that a
        large request is not passed by small ones for ever.
        """
        admitted: list[Request] = []
        while len(self._running) < self._limits.max_running and len(admitted) != most:
            waiting = [tenant for tenant, queue in self._queues.items() if queue]
            if not waiting:
                break
            tenant = min(waiting, key=self._tenant_admitted.__getitem__)
            if not fits(self._queues[tenant][0]):
                break
            request = self._queues[tenant].popleft()
            self._tenant_admitted[tenant] = self._tick()
            self._tenant_served.setdefault(tenant, self._tick())
            self._request_served[request.id] = self._tick()
            self._running[request.id] = request
            admitted.append(request)
        return tuple(admitted)

    def late(self, now: float) -> tuple[Request, ...]:
        """Those whose time to wait is over at `now`; the caller refuses and removes them."""
        since = now - self._limits.max_wait
        return tuple(request for request in self.queued if request.arrived <= since)

    def plan(self) -> Plan:
        """What the next step computes."""
        budget = self._limits.step_tokens
        slices = [
            Slice(request, request.computed_len, len(request.tokens))
            for request in self._running.values()
            if request.state is State.DECODE
        ]
        if len(slices) == len(self._running):
            return Plan(tuple(slices))
        budget -= len(slices)
        prefills = [r for r in self._running.values() if r.state is State.PREFILL]
        prefills.sort(key=lambda r: (self._tenant_served[r.tenant], self._request_served[r.id]))
        for request in prefills:
            if budget == 0:
                break
            count = min(request.pending_len, budget)
            slices.append(Slice(request, request.computed_len, request.computed_len + count))
            budget -= count
            self._tenant_served[request.tenant] = self._tick()
            self._request_served[request.id] = self._tick()
        return Plan(tuple(slices))

    def _tick(self) -> int:
        self._clock += 1
        return self._clock

    def _forget_idle_tenant(self, tenant: str) -> None:
        if self._queues.get(tenant) or any(r.tenant == tenant for r in self._running.values()):
            return
        self._queues.pop(tenant, None)
        self._tenant_admitted.pop(tenant, None)
        self._tenant_served.pop(tenant, None)
