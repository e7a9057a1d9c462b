"""What the engine holds for its turns: each turn's things, the pages promised, the step under way.

Only the engine's thread touches them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import structlog

from backends.errors import BackendError, BackendErrorCode
from backends.local.paged import pages_needed
from backends.local.request import State

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Iterator

    from backends.api import FinishReason
    from backends.local.generation import Generation
    from backends.local.kernels.batch import Drawing
    from backends.local.paged import SequenceKV
    from backends.local.prefix import Prefix, Prefixes
    from backends.local.request import Request
    from backends.local.scheduler import Scheduler
    from kvstore.device import DeviceTier

__all__ = ["Flight", "Live", "Piece", "Promises", "Turns"]

log = structlog.get_logger()


@dataclass(slots=True, eq=False)
class Live:
    """What one turn holds: freed as one."""

    generation: Generation
    kv: SequenceKV
    prefix: Prefix | None = None
    turning: list[int] = field(default_factory=list)
    """Where its prompt turns and is worth keeping, in tokens, in order; those not computed yet."""
    passed: list[int] = field(default_factory=list)
    """Those that a step has computed, or does, and that are not kept yet."""

    def begin(self, prefix: Prefix) -> None:
        """The turn runs from now on, with what the store has of it.

        Its turning points are the end of what the persona alone says, where every new chat with it
        begins, and the last message boundary, where a regenerated or edited turn does.
        """
        self.prefix = prefix
        prompt_len = self.generation.request.prompt_len
        inside = [b for b in self.generation.boundaries if b < prompt_len]
        self.turning = sorted({prefix.whose.shared, *inside[-1:]})

    def reaches(self, end: int) -> bool:
        """The tokens up to `end` are being computed: whether turning points were passed thereby."""
        restored_len = self.generation.request.restored_len
        while self.turning and self.turning[0] <= end:
            boundary = self.turning.pop(0)
            if boundary > restored_len:
                self.passed.append(boundary)
        return bool(self.passed)


class Piece(NamedTuple):
    """One turn's part of a step: tokens [start, end) of its request, and guesses behind them."""

    live: Live
    start: int
    end: int
    guesses: list[int]


@dataclass(frozen=True, slots=True)
class Flight:
    """A step that was launched: its parts, what waits for their tokens, the second it began."""

    pieces: list[Piece]
    drawing: Drawing
    began: float

    @property
    def token_count(self) -> int:
        return sum(piece.end - piece.start for piece in self.pieces)


class Turns:
    """Every turn that the engine holds, from its queueing to its end; counts how they ended."""

    def __init__(
        self,
        scheduler: Scheduler,
        prefixes: Prefixes,
        promises: Promises,
        counts: Counter[str],
    ) -> None:
        self._scheduler = scheduler
        self._prefixes = prefixes
        self._promises = promises
        self._counts = counts
        self._live: dict[int, Live] = {}
        self._loading: dict[int, Live] = {}
        """Those that wait for their prefix, by its identity."""

    def __len__(self) -> int:
        return len(self._live)

    def __iter__(self) -> Iterator[Live]:
        return iter(self._live.values())

    def __getitem__(self, id: int) -> Live:
        return self._live[id]

    def get(self, id: int) -> Live | None:
        """The turn; None when it has ended."""
        return self._live.get(id)

    def add(self, live: Live) -> None:
        """A turn that was queued."""
        self._live[live.generation.request.id] = live

    def fits(self, request: Request) -> bool:
        """Promises the request its pages, where the device has them."""
        return self._promises.make(request.id, self._live[request.id].generation.most_tokens)

    def begin(self, live: Live, prefix: Prefix) -> None:
        """The turn runs from now on and waits for its prefix."""
        live.begin(prefix)
        self._loading[id(prefix)] = live

    def waiting_for(self, prefix: Prefix) -> Live:
        """Whose prefix this is; that turn waits no more."""
        return self._loading.pop(id(prefix))

    def finish(self, live: Live, reason: FinishReason) -> None:
        """The reply has come to its own end: says so, and ends the turn."""
        assert live.prefix is not None
        prefix, clocks = live.prefix, live.generation.clocks
        live.generation.finish(
            reason,
            by_tier=prefix.by_tier,
            miss=prefix.miss,
            differs_at=prefix.differs_at,
            saved_ms=self._prefixes.saved_ms(prefix, clocks.timings().restore_ms),
        )
        self._counts["finished"] += 1
        self.end(live, keep=True)

    def fail(
        self, live: Live, message: str, code: BackendErrorCode = BackendErrorCode.INTERNAL
    ) -> None:
        """Ends the turn with an error."""
        self._counts["failed"] += 1
        retryable = code is BackendErrorCode.OVERLOADED
        live.generation.emit(BackendError(code, message, retryable=retryable))
        self.end(live, keep=False)

    def broke(self, live: Live, error: Exception) -> None:
        """A defect in one turn's work ends that turn and no other."""
        log.error("turn_failed", request=live.generation.request.id, exc_info=error)
        self.fail(live, "the turn failed in the engine")

    def end(self, live: Live, *, keep: bool) -> None:
        """Frees everything the turn holds; keeps its KV first where that is worth it."""
        request = live.generation.request
        self._live.pop(request.id, None)
        self._promises.end(request.id)
        self._scheduler.remove(request)
        request.move(State.ENDED)
        if live.prefix is not None:
            self._loading.pop(id(live.prefix), None)
            self._prefixes.forget(live.prefix)
            if keep and request.computed_len:
                self.keep_passed(live)
                # What a step under way computes of it is void.
                live.kv.retract(live.kv.length - request.computed_len)
                self._keep(live, live.generation.kept_tokens())
        live.passed.clear()
        live.kv.free()

    def keep_passed(self, live: Live) -> None:
        """Keeps the prompt's turning points while their sliding windows are still here."""
        passed, live.passed = live.passed, []
        for boundary in passed:
            self._keep(live, live.generation.request.tokens[:boundary])

    def _keep(self, live: Live, tokens: list[int]) -> None:
        assert live.prefix is not None
        try:
            self._prefixes.keep(live.prefix, live.kv, tokens)
        except Exception:
            # The reply is whole; only its cache is not.
            log.exception("prefix_not_kept", request=live.generation.request.id)


class Promises:
    """Pages of the device that running turns may come to hold, none promised twice."""

    def __init__(self, device: DeviceTier, step_tokens: int) -> None:
        self._device = device
        self._step_tokens = step_tokens
        self._promised: dict[int, list[int]] = {}
        self._left = [device.size(group.id) for group in device.layout.groups]

    def make(self, id: int, tokens: int) -> bool:
        """Promises turn `id` what a sequence of `tokens` takes; False when it is not to be had."""
        layout = self._device.layout
        asked = [
            min(
                # One more for the copy of a shared page that is written behind.
                pages_needed(group, tokens, self._step_tokens, layout.block_tokens) + 1,
                self._device.size(group.id),
            )
            for group in layout.groups
        ]
        if any(pages > left for pages, left in zip(asked, self._left, strict=True)):
            return False
        self._promised[id] = asked
        self._left = [left - pages for pages, left in zip(asked, self._left, strict=True)]
        return True

    def end(self, id: int) -> None:
        """The turn holds nothing more; one without a promise is fine."""
        given = self._promised.pop(id, None)
        if given is not None:
            self._left = [left + pages for pages, left in zip(given, self._left, strict=True)]
