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

One round:

    orders         commands; after them nothing is computed for who was cancelled
    launch         plan the step and give it to the model
    catch up       keep what the step computes of a prompt, speak what the step before sampled, end
                   who said all, admit and restore who waits
    land           wait for the step's logits, draw its tokens

A device computes while Python catches up. On a CPU `launch` returns when the step is done, so there
the engine catches up first. A stop string that is found while the next step is under way makes
that turn's part of it void: its token is never taken, its KV is taken back.
"""

from __future__ import annotations

import itertools
import queue
import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog

from backends.errors import BackendError, BackendErrorCode
from backends.local.commands import Cancel, Forget, Prefetch, Retire, Stop
from backends.local.generation import Generation
from backends.local.intake import Intake
from backends.local.live import Flight, Live, Piece, Promises, Turns
from backends.local.model import Chunk
from backends.local.paged import SequenceKV
from backends.local.prefix import Whose
from backends.local.request import State
from backends.local.sampling import all_greedy
from backends.local.scheduler import Full, Scheduler

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from backends.api import Turn
    from backends.local.commands import Command, Done
    from backends.local.generation import Emit
    from backends.local.model import Decoder
    from backends.local.prefix import Arrival, Prefixes
    from backends.local.sampling import Draw
    from backends.local.scheduler import Limits, Plan
    from backends.local.template import Template
    from backends.local.tokenizer import Tokenizer
    from kvstore.api import StoreStats
    from kvstore.device import DeviceTier

__all__ = ["Engine", "EngineStats"]

log = structlog.get_logger()

WELCOME_S = 0.005
"""How long a round admits turns while others run; each takes a look-up and perhaps a restore."""

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
        self._intake = Intake(tokenizer, template, context)
        self._prefixes = prefixes
        self._device = device
        self._limits = limits
        self._draft_tokens = draft_tokens
        self._clock = clock
        self._ids = itertools.count(1)
        self._commands: queue.SimpleQueue[Command] = queue.SimpleQueue()
        # Only the engine's thread touches what follows; `stats` reads snapshots of it.
        self._scheduler = Scheduler(limits)
        self._counts: Counter[str] = Counter()
        promises = Promises(device, limits.step_tokens)
        self._turns = Turns(self._scheduler, prefixes, promises, self._counts)
        self._passing: list[Live] = []
        """Those of whose prompt a step has computed a turning point, or does, that is not kept."""
        self._unspoken: list[Live] = []
        """Those that have taken tokens and not said them."""
        self._stats = EngineStats()
        self._stopped = False

    def submit(self, turn: Turn, emit: Emit) -> int:
        """Renders the turn's prompt and queues it; returns the id for `cancel`.

        Blocks for the tokenizer. Every failure, a prompt without room for a reply included, goes
        to `emit`, which must not raise.
        """
        id = next(self._ids)
        generation = self._intake.generation(id, turn, emit, self._clock())
        if generation is not None:
            self._commands.put(generation)
        return id

    def prefetch(self, turn: Turn) -> None:
        """Somebody is about to ask for this turn, or more: brings its KV nearer. Never raises."""
        order = self._intake.prefetch(turn)
        if order is not None:
            self._commands.put(order)

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
                waiting = self._turns or self._prefixes.is_waiting
                self._obey(self._commands.get(timeout=LOADING_POLL_S if waiting else None))
            except queue.Empty:
                continue
        self._catch_up()
        for live in list(self._turns):
            error = BackendError(BackendErrorCode.UNAVAILABLE, "the engine stops", retryable=True)
            live.generation.emit(error)
            self._turns.end(live, keep=True)
        for request in self._scheduler.queued:
            self._scheduler.remove(request)
        self._snapshot()
        self._prefixes.close()

    def step(self) -> bool:
        """One round; returns whether the model ran."""
        self._take_commands()
        flight = self._launch() if self._decoder.runs_beside else None
        self._catch_up()
        self._welcome()
        if flight is None:
            flight = self._launch()
        if flight is not None:
            self._counts["steps"] += 1
            self._land(flight)
        self._snapshot()
        return flight is not None

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
                live = self._turns.get(id)
                if live is not None:
                    self._counts["cancelled"] += 1
                    self._turns.end(live, keep=True)
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
            self._counts["failed"] += 1
            detail = {"queued": full.max_queued}
            generation.emit(
                BackendError(BackendErrorCode.OVERLOADED, str(full), retryable=True, detail=detail)
            )
            return
        self._turns.add(Live(generation, SequenceKV(self._device)))

    def _launch(self) -> Flight | None:
        """Gives the next step to the model; None when there is nothing to compute."""
        plan = self._scheduler.plan()
        if not plan.slices:
            return None
        most = self._most_guesses(plan)
        pieces: list[Piece] = []
        chunks: list[Chunk] = []
        asked: list[Draw | None] = []
        for request, start, end in plan.slices:
            live = self._turns[request.id]
            guesses = live.generation.drafts(most) if most else []
            fitting = live.kv.reserve_for(end - start, guesses)
            if fitting is None:
                # Abandoned restores still hold pages that were promised to this one.
                log.warning("pages_exhausted", request=request.id)
                message = "the device has no room for this turn's KV"
                self._turns.fail(live, message, BackendErrorCode.OVERLOADED)
                continue
            pieces.append(Piece(live, start, end, fitting))
            new = request.tokens[start:end]
            if fitting:
                new += fitting
            # The rows of an unfinished prompt are nobody's.
            draws = live.generation.ask(fitting) if end == len(request.tokens) else [None]
            chunks.append(Chunk(live.kv, new, 1 + len(fitting), all_greedy(draws)))
            asked += draws
        if not pieces:
            return None
        began = self._clock()
        try:
            drawing = self._decoder.draw(self._decoder.forward(chunks), asked)
        except Exception as error:
            self._model_failed(pieces, error)
            return None
        if len(plan.slices) < plan.token_count:
            self._passing += [piece.live for piece in pieces if piece.live.reaches(piece.end)]
        return Flight(pieces, drawing, began)

    def _most_guesses(self, plan: Plan) -> int:
        """How many drafts to verify behind each decode: where the step has rows to spare."""
        most = min(self._draft_tokens, self._decoder.row_budget // len(plan.slices) - 1)
        if most < 1 or any(s.request.state is not State.DECODE for s in plan.slices):
            return 0
        return most

    def _land(self, flight: Flight) -> None:
        """Waits for the step's tokens; those that ended meanwhile get none."""
        try:
            drawn = iter(flight.drawing())
        except Exception as error:
            self._model_failed(flight.pieces, error)
            return
        now = self._clock()
        if len(flight.pieces) < flight.token_count:
            self._prefixes.computed(flight.token_count, now - flight.began)
        sampled = 0
        for live, start, end, guesses in flight.pieces:
            token = next(drawn)
            others = [next(drawn) for _ in guesses] if guesses else []
            request = live.generation.request
            if request.state is State.ENDED:
                continue
            try:
                request.advance(end - start)
                if not request.pending_len:
                    self._unspoken.append(live)
                    live.generation.take(token, now)
                    if guesses:
                        self._verify(live, guesses, others, now)
                    sampled += len(request.tokens) - end
            except Exception as error:
                self._turns.broke(live, error)
        self._counts["sampled_tokens"] += sampled

    def _verify(
        self,
        live: Live,
        guesses: list[int],
        tokens: Sequence[int | None],
        now: float,
    ) -> None:
        """Takes further tokens as long as the guess before was right."""
        request = live.generation.request
        for guess, token in zip(guesses, tokens, strict=True):
            if request.state is State.ENDING or request.tokens[-1] != guess:
                break
            request.advance(1)  # the guess had its KV computed
            live.generation.take(token, now)
        live.kv.retract(live.kv.length - request.computed_len)

    def _catch_up(self) -> None:
        """Does what no step waits for, for those that run."""
        passing, self._passing = self._passing, []
        for live in passing:
            self._turns.keep_passed(live)
        unspoken, self._unspoken = self._unspoken, []
        for live in unspoken:
            if live.generation.request.state is State.ENDED:
                continue
            try:
                reason = live.generation.speak()
                if reason is not None:
                    self._turns.finish(live, reason)
            except Exception as error:
                self._turns.broke(live, error)

    def _welcome(self) -> None:
        """Admits, looks up and restores, for a few milliseconds at most; refuses who is late."""
        until = self._clock() + WELCOME_S
        while admitted := self._scheduler.admit(self._turns.fits, most=1):
            for request in admitted:
                self._begin(self._turns[request.id])
            if self._clock() > until:
                break
        for request in self._scheduler.late(self._clock()):
            message = f"no room came free in {self._limits.max_wait:g} s"
            self._turns.fail(self._turns[request.id], message, BackendErrorCode.OVERLOADED)
        for arrival in self._prefixes.arrived(self._clock()):
            self._restore(self._turns.waiting_for(arrival.prefix), arrival)

    def _begin(self, live: Live) -> None:
        generation, request = live.generation, live.generation.request
        try:
            generation.clocks.admitted = self._clock()
            self._counts["prompt_tokens"] += request.prompt_len
            prefix = self._prefixes.look_up(
                Whose.of(generation.turn, generation.prompt),
                request.tokens,
                generation.boundaries,
                generation.clocks.admitted,
            )
            self._turns.begin(live, prefix)
            request.move(State.LOADING)
        except Exception as error:
            self._turns.broke(live, error)

    def _restore(self, live: Live, arrival: Arrival) -> None:
        request = live.generation.request
        try:
            length = self._prefixes.restore(arrival, live.kv)
            request.restore(length)
            request.move(State.PREFILL)
            live.generation.clocks.restored = self._clock()
            self._counts["cached_tokens"] += length
        except Exception as error:
            self._turns.broke(live, error)

    def _model_failed(self, pieces: Sequence[Piece], error: Exception) -> None:
        """A failure of the model ends the turns of its step."""
        tokens = sum(piece.end - piece.start for piece in pieces)
        log.error("forward_failed", requests=len(pieces), tokens=tokens, exc_info=error)
        for piece in pieces:
            if piece.live.generation.request.state is not State.ENDED:
                self._turns.fail(piece.live, "the model failed")

    def _snapshot(self) -> None:
        held = len(self._scheduler.queued), len(self._scheduler.running)
        self._stats = EngineStats(*held, **self._counts)
