"""The engine's loop: take commands, schedule, run the model, sample, emit.

    submit(turn, emit) -> id     any thread; renders the prompt there, so that the loop never waits
                                 for a tokenizer
    cancel(id)                   any thread; takes effect before the next step computes anything
    prefetch, retire, forget     any thread; what the gateway knows of people coming and going
    step() -> bool               the engine's thread: one round of the loop
    run(), stop()                `run` steps until `stop`, sleeping while there is nothing to do
    stats() -> EngineStats       any thread

Everything a turn gives comes through its `emit`: text, then one `Finished`, or one `BackendError`.
After `cancel` took effect nothing comes any more. A turn that fails ends alone; only a failure of
the model itself ends the turns of that one step together.
"""

from __future__ import annotations

import contextlib
import itertools
import queue
import threading
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import structlog

from backends.errors import BackendError, BackendErrorCode
from backends.local.commands import Cancel, Forget, Prefetch, Retire, Stop
from backends.local.generation import Generation
from backends.local.model import chunks_of
from backends.local.paged import SequenceKV, pages_needed
from backends.local.prefix import Whose
from backends.local.request import State
from backends.local.scheduler import Full, Scheduler

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from backends.api import FinishReason, Turn
    from backends.local.commands import Command, Done
    from backends.local.generation import Emit
    from backends.local.model import Decoder
    from backends.local.prefix import Arrival, Prefix, Prefixes
    from backends.local.request import Request
    from backends.local.sampling import Draw
    from backends.local.scheduler import Limits, Plan, Slice
    from backends.local.template import Template
    from backends.local.tokenizer import Tokenizer
    from kvstore.api import StoreStats
    from kvstore.device import DeviceTier

__all__ = ["Engine", "EngineStats"]

log = structlog.get_logger()

LOADING_POLL_S = 0.001
"""How long the loop sleeps while all it has are restores in flight."""


@dataclass(frozen=True, slots=True)
class EngineStats:
    """Turns held now, and counters since the engine was made."""

    queued: int = 0
    running: int = 0
    steps: int = 0
    finished: int = 0
    cancelled: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    sampled_tokens: int = 0


@dataclass(slots=True)
class _Live:
    """What a running turn holds: freed as one."""

    generation: Generation
    kv: SequenceKV
    prefix: Prefix | None = None


class Engine:
    """One model, many turns. `context` counts tokens, the reply included.

    At most `draft_tokens` guesses a reply are verified in a step (`backends.local.drafts`).
    """

    def __init__(
        self,
        decoder: Decoder,
        tokenizer: Tokenizer,
        template: Template,
        prefixes: Prefixes,
        device: DeviceTier,
        *,
        limits: Limits,
        context: int,
        draft_tokens: int = 3,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._decoder = decoder
        self._tokenizer = tokenizer
        self._template = template
        self._prefixes = prefixes
        self._device = device
        self._limits = limits
        self._reserved: dict[int, dict[int, int]] = {}
        """Pages that each running request may come to hold, by group."""
        self._context = context
        self._draft_tokens = draft_tokens
        self._clock = clock
        self._ids = itertools.count(1)
        self._commands: queue.SimpleQueue[Command] = queue.SimpleQueue()
        self._rendering = threading.Lock()
        # Only the engine's thread touches what follows; `stats` reads snapshots of it.
        self._scheduler = Scheduler(limits)
        self._live: dict[int, _Live] = {}
        self._stats = EngineStats()
        self._stopped = False

    def submit(self, turn: Turn, emit: Emit) -> int:
        """Renders the turn's prompt and queues it; returns the id for `cancel`.

        Blocks for the tokenizer. Every failure, a prompt without room for a reply included, goes
        to `emit`, which must not raise.
        """
        arrived = self._clock()
        id = next(self._ids)
        try:
            with self._rendering:
                prompt = self._template.render(turn)
            if not prompt.ids:
                raise BackendError(BackendErrorCode.BAD_REQUEST, "the prompt is empty")
            if len(prompt.ids) >= self._context:
                raise BackendError(
                    BackendErrorCode.CONTEXT_OVERFLOW,
                    f"the prompt has {len(prompt.ids)} tokens; "
                    f"the context of {self._context} leaves no room for a reply",
                    detail={"prompt_tokens": len(prompt.ids), "context": self._context},
                )
            generation = Generation(
                id,
                turn,
                prompt,
                vocabulary=self._tokenizer,
                context=self._context,
                emit=emit,
                arrived=arrived,
            )
        except BackendError as error:
            emit(error)
        except Exception:
            log.exception("prompt_failed", request=id)
            emit(BackendError(BackendErrorCode.INTERNAL, "the prompt could not be made"))
        else:
            self._commands.put(generation)
        return id

    def prefetch(self, turn: Turn) -> None:
        """Somebody is about to ask for this turn, or more: brings its KV nearer. Never raises."""
        try:
            with self._rendering:
                prompt = self._template.render(turn)
            self._commands.put(Prefetch(Whose.of(turn, prompt), prompt))
        except Exception:
            log.exception("prefetch_failed")

    def retire(self, tenant: str, conversation: str) -> None:
        """Somebody left: their KV is the first to make room for others'."""
        self._commands.put(Retire(tenant, conversation))

    def forget(self, tenant: str, owner: str | None, done: Done) -> None:
        """Deletes the KV of `conversation:ID`, `persona:ID@REVISION` or, with None, of the tenant.

        `done(deleted, problem)` comes from the engine's thread; `problem` is "" when all is gone.
        """
        self._commands.put(Forget(tenant, owner, done))

    def cancel(self, id: int) -> None:
        """Ends a turn; unknown and ended ones are fine."""
        self._commands.put(Cancel(id))

    def stop(self) -> None:
        """Ends `run` at its next round; the turns it holds fail as UNAVAILABLE."""
        self._commands.put(Stop())

    def stats(self) -> EngineStats:
        """A snapshot."""
        return self._stats

    def store_stats(self) -> StoreStats:
        """The store's counters; any thread."""
        return self._prefixes.stats()

    def run(self) -> None:
        """Steps until `stop`, then ends what is left and closes the store."""
        while not self._stopped:
            if self.step() or self._stopped:
                continue
            try:
                # Nothing to compute: sleep until a command comes or a restore may have ended.
                waiting = self._live or self._prefixes.is_waiting
                self._obey(self._commands.get(timeout=LOADING_POLL_S if waiting else None))
            except queue.Empty:
                continue
        for live in list(self._live.values()):
            error = BackendError(BackendErrorCode.UNAVAILABLE, "the engine stops", retryable=True)
            live.generation.emit(error)
            self._end(live, keep=True)
        for request in self._scheduler.queued:
            self._scheduler.remove(request)
        self._count()
        self._prefixes.close()

    def step(self) -> bool:
        """One round; returns whether the model ran."""
        self._take_commands()
        for request in self._scheduler.admit(self._fits):
            live = self._live[request.id]
            with self._failing_alone(live):
                self._begin(live)
        for request in self._scheduler.late(self._clock()):
            message = f"no room came free in {self._limits.max_wait:g} s"
            self._fail(self._live[request.id], message, BackendErrorCode.OVERLOADED)
        for arrival in self._prefixes.arrived(self._clock()):
            live = next(v for v in self._live.values() if v.prefix is arrival.prefix)
            with self._failing_alone(live):
                self._restore(live, arrival)
        plan = self._scheduler.plan()
        if plan.slices:
            self._compute(plan)
        self._count(steps=bool(plan.slices))
        return bool(plan.slices)

    def _take_commands(self) -> None:
        try:
            while True:
                self._obey(self._commands.get_nowait())
        except queue.Empty:
            return

    def _obey(self, command: Command) -> None:
        match command:
            case Generation():
                self._queue(command)
            case Cancel(id):
                live = self._live.get(id)
                if live is not None:
                    self._count(cancelled=1)
                    self._end(live, keep=True)
            case Prefetch(whose, prompt):
                self._prefixes.prefetch(whose, prompt.ids, prompt.boundaries)
            case Retire(tenant, conversation):
                self._prefixes.retire(tenant, conversation)
            case Forget(tenant, owner, done):
                self._prefixes.purge(tenant, owner, done)
            case Stop():
                self._stopped = True

    def _queue(self, generation: Generation) -> None:
        try:
            self._scheduler.add(generation.request)
        except Full as full:
            self._count(failed=1)
            detail = {"queued": full.max_queued}
            generation.emit(
                BackendError(BackendErrorCode.OVERLOADED, str(full), retryable=True, detail=detail)
            )
            return
        self._live[generation.request.id] = _Live(generation, SequenceKV(self._device))

    def _begin(self, live: _Live) -> None:
        generation, request = live.generation, live.generation.request
        generation.clocks.admitted = self._clock()
        self._count(prompt_tokens=request.prompt_len)
        live.prefix = self._prefixes.look_up(
            Whose.of(generation.turn, generation.prompt),
            request.tokens,
            generation.boundaries,
            generation.clocks.admitted,
        )
        request.move(State.LOADING)

    def _restore(self, live: _Live, arrival: Arrival) -> None:
        request = live.generation.request
        length = self._prefixes.restore(arrival, live.kv)
        request.restore(length)
        request.move(State.PREFILL)
        live.generation.clocks.restored = self._clock()
        self._count(cached_tokens=length)

    def _fits(self, request: Request) -> bool:
        """Whether the device has pages for all that this request may come to hold; takes them."""
        generation = self._live[request.id].generation
        held: dict[int, int] = {}
        for group in self._device.layout.groups:
            step = self._device.layout.block_tokens
            pages = pages_needed(group, generation.most_tokens, self._limits.step_tokens, step)
            # One more for the copy of a shared page that is written behind.
            held[group.id] = min(pages + 1, self._device.size(group.id))
            taken = sum(other[group.id] for other in self._reserved.values())
            if taken + held[group.id] > self._device.size(group.id):
                return False
        self._reserved[request.id] = held
        return True

    def _compute(self, plan: Plan) -> None:
        slices, drafts, parts = [], [], []
        ids: list[int] = []
        asked: list[Draw | None] = []
        for piece, guesses in zip(plan.slices, self._draft(plan), strict=True):
            kv, tokens = self._live[piece.request.id].kv, piece.request.tokens
            draft = kv.reserve_for(piece.end - piece.start, guesses)
            if draft is None:
                # Abandoned restores still hold pages that were promised to this one.
                log.warning("pages_exhausted", request=piece.request.id)
                self._fail(
                    self._live[piece.request.id],
                    "the device has no room for this turn's KV",
                    BackendErrorCode.OVERLOADED,
                )
                continue
            new = tokens[piece.start : piece.end] + draft
            ids += new
            slices.append(piece)
            drafts.append(draft)
            parts.append((kv, len(new), 1 + len(draft)))
            more = piece.end < len(tokens)  # of the prompt
            asked += [None] if more else self._live[piece.request.id].generation.ask(draft)
        if not slices:
            return
        plan = replace(plan, slices=tuple(slices))
        began = self._clock()
        try:
            logits = self._decoder.forward(chunks_of(parts, ids))
            drawn = iter(self._decoder.draw(logits, asked))
        except Exception:
            log.exception("forward_failed", requests=len(plan.slices), tokens=plan.token_count)
            for piece in plan.slices:
                self._fail(self._live[piece.request.id], "the model failed")
            return
        now = self._clock()
        if len(plan.slices) < plan.token_count:
            self._prefixes.computed(plan.token_count, now - began)
        sampled = 0
        for piece, draft in zip(plan.slices, drafts, strict=True):
            live, own = self._live[piece.request.id], [*itertools.islice(drawn, 1 + len(draft))]
            with self._failing_alone(live):
                piece.request.advance(piece.end - piece.start)
                reason, before = None, len(piece.request.tokens)
                if piece.request.pending_len == 0:
                    reason = self._sample(live, own, draft, now)
                    sampled += len(piece.request.tokens) - before
                self._keep_boundary(live, piece)  # behind the token: nobody waits for it
                if reason is not None:
                    self._finish(live, reason)
        self._count(sampled_tokens=sampled)

    def _draft(self, plan: Plan) -> list[list[int]]:
        """Guesses to verify behind each decode, where the step has rows to spare."""
        most = min(self._draft_tokens, self._decoder.row_budget // len(plan.slices) - 1)
        if most < 1 or any(s.request.state is not State.DECODE for s in plan.slices):
            return [[] for _ in plan.slices]
        return [self._live[s.request.id].generation.drafts(most) for s in plan.slices]

    def _sample(
        self, live: _Live, tokens: Sequence[int | None], draft: list[int], now: float
    ) -> FinishReason | None:
        """Takes the next token, and further ones as long as the draft was right."""
        request = live.generation.request
        for token, guess in zip(tokens, [*draft, None], strict=True):
            reason = live.generation.take(token, now)
            if reason is not None or request.tokens[-1] != guess:
                break
            request.advance(1)  # the guess had its KV computed
        live.kv.retract(live.kv.length - request.computed_len)
        return reason

    @contextlib.contextmanager
    def _failing_alone(self, live: _Live) -> Iterator[None]:
        """A defect in one turn's work ends that turn and no other."""
        try:
            yield
        except Exception:
            log.exception("turn_failed", request=live.generation.request.id)
            self._fail(live, "the turn failed in the engine")

    def _keep_boundary(self, live: _Live, piece: Slice) -> None:
        """Keeps the prompt's turning points while their sliding windows are still here.

        Those are the end of what the persona alone says, where every new chat with it begins, and
        the last message boundary, where a regenerated or edited turn does.
        """
        if live.prefix is None:
            return
        inside = [b for b in live.generation.boundaries if b < piece.request.prompt_len]
        for boundary in sorted({live.prefix.whose.shared, *inside[-1:]}):
            if piece.start < boundary <= piece.end:
                self._keep(live, piece.request.tokens[:boundary])

    def _finish(self, live: _Live, reason: FinishReason) -> None:
        assert live.prefix is not None
        prefix, clocks = live.prefix, live.generation.clocks
        live.generation.finish(
            reason,
            by_tier=prefix.by_tier,
            miss=prefix.miss,
            differs_at=prefix.differs_at,
            saved_ms=self._prefixes.saved_ms(prefix, clocks.timings().restore_ms),
        )
        self._count(finished=1)
        self._end(live, keep=True)

    def _fail(
        self, live: _Live, message: str, code: BackendErrorCode = BackendErrorCode.INTERNAL
    ) -> None:
        self._count(failed=1)
        retryable = code is BackendErrorCode.OVERLOADED
        live.generation.emit(BackendError(code, message, retryable=retryable))
        self._end(live, keep=False)

    def _end(self, live: _Live, *, keep: bool) -> None:
        """Frees everything the turn holds; keeps its KV first where that is worth it."""
        request: Request = live.generation.request
        self._live.pop(request.id, None)
        self._reserved.pop(request.id, None)
        self._scheduler.remove(request)
        request.move(State.ENDED)
        if live.prefix is not None:
            self._prefixes.forget(live.prefix)
            if keep and request.computed_len:
                self._keep(live, live.generation.kept_tokens())
        live.kv.free()

    def _keep(self, live: _Live, tokens: list[int]) -> None:
        assert live.prefix is not None
        try:
            self._prefixes.keep(live.prefix, live.kv, tokens)
        except Exception:
            # The reply is whole; only its cache is not.
            log.exception("prefix_not_kept", request=live.generation.request.id)

    def _count(self, **more: int) -> None:
        added = {name: getattr(self._stats, name) + count for name, count in more.items()}
        held = len(self._scheduler.queued), len(self._scheduler.running)
        self._stats = replace(self._stats, queued=held[0], running=held[1], **added)
