"""One turn end to end: accept, store, render, speak, publish, settle.

The server owns the generation: a turn runs in its own task, whatever becomes of the socket that
asked. `_run` is never cancelled; what a stop cancels is the task inside it that speaks.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

import structlog

from backends.api import Finished, Role, TextDelta
from backends.errors import BackendError, BackendErrorCode
from gateway.chats import LiveTurn
from gateway.errors import ErrorCode, HistoryError, Refused
from gateway.failures import describe
from gateway.history import Chat, StoredMessage, TurnRecord
from gateway.ids import new_id
from gateway.lifecycle import Signal, TurnState
from gateway.limits import check_live_turns, check_text
from gateway.protocol import (
    ChatUpdated,
    Error,
    MessageStatus,
    Stats,
    TurnAccepted,
    TurnCancelled,
    TurnDelta,
    TurnDone,
    TurnFailed,
    TurnStarted,
)
from gateway.throttle import Throttle
from personas.persona import PersonaNotFound
from personas.prompt import Budget, greetings, prompt_texts, render

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Coroutine

    from backends.api import Sampling
    from gateway.chats import Chats, LiveChat, Watcher
    from gateway.config import ServerConfig
    from gateway.ensemble import Ensemble
    from gateway.history import History
    from gateway.protocol import ChatOpen, ChatUse, TurnCancel, TurnCreate
    from personas.library import Library
    from personas.persona import Persona

__all__ = ["Turns"]

log = structlog.get_logger()

TENANT = "local"
COALESCE = 0.025
CHECKPOINT = 0.5

R = TypeVar("R")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Outcome:
    """How a turn ended, before that is stored."""

    signal: Signal
    status: MessageStatus
    error: Error | None = None
    finished: Finished | None = None


class _Speech(LiveTurn):
    """A live turn with its tasks and clocks."""

    def __init__(self, record: TurnRecord, began: float) -> None:
        super().__init__(record)
        self.began = began
        self.first: float | None = None
        self.spoken: list[str] = []
        self.stopped: _Outcome | None = None
        self.speaking: asyncio.Task[Finished] | None = None

    def stop(self, outcome: _Outcome) -> bool:
        """Ends the speaking within one step; False when it had ended."""
        if self.stopped or (self.speaking is not None and self.speaking.done()):
            return False
        self.stopped = outcome
        if self.speaking is not None:
            self.speaking.cancel()
        return True


class Turns:
    """Opens chats, and creates, stops and drains turns."""

    def __init__(
        self,
        *,
        chats: Chats,
        history: History,
        library: Library,
        ensemble: Ensemble,
        sampling: Sampling,
        limits: ServerConfig,
    ) -> None:
        self._chats = chats
        self._history = history
        self._library = library
        self._ensemble = ensemble
        self._sampling = sampling
        self._limits = limits
        self._tasks: set[asyncio.Task[object]] = set()
        self._opened: dict[tuple[str, str, str], str] = {}
        self.draining = False

    async def open(self, frame: ChatOpen) -> LiveChat:
        """A new chat with the persona's greeting; the same one again for a repeated request.

        Raises `Refused` (`unknown_persona`, `unknown_backend`) and `HistoryError`.
        """
        request = (frame.id, frame.persona, frame.user)
        if request not in self._opened:
            backend = self._ensemble.get(frame.backend).backend.name if frame.backend else ""
            persona = self._persona(frame.persona)
            chat_id = new_id("c")
            texts = greetings(persona, user=frame.user, conversation_id=chat_id)
            said = StoredMessage(
                id=new_id("m"),
                parent=None,
                role=Role.ASSISTANT,
                name=persona.speaks_as,
                text=texts[0] if texts else "",
            )
            chat = Chat(
                id=chat_id,
                persona_id=persona.id,
                persona_revision=persona.revision,
                persona_name=persona.name,
                user=frame.user,
                backend=backend,
                head=said.id if texts else None,
                messages=(said,) if texts else (),
            )
            await self._chats.add(chat)
            log.info("chat_opened", conversation=chat.id, persona=persona.id)
            self._opened[request] = chat.id
            if len(self._opened) > 1024:
                del self._opened[next(iter(self._opened))]
        return await self._chats.get(self._opened[request])

    async def create(self, frame: TurnCreate, asker: Watcher) -> None:
        """Accepts a turn and sets it going; the answer and all events go to the watchers.

        Raises `Refused` and `HistoryError`; then nothing was stored. A repeated `frame.id` gets
        its first answer, and no second turn.
        """
        live = await self._chats.get(frame.chat)
        # A socket that closes cancels this call, but never half an acceptance.
        await asyncio.shield(self._spawn(self._accept(live, frame, asker)))

    async def _accept(self, live: LiveChat, frame: TurnCreate, asker: Watcher) -> None:
        began = time.perf_counter()
        async with live.accepting:
            earlier = next((t for t in live.chat.turns if t.request == frame.id), None)
            if earlier is not None:
                # Not a new event, so it has no number.
                asker.deliver(replace(_accepted(live.chat, earlier), re=frame.id))
                return
            check_text(frame.text, self._limits.text_chars)
            if self.draining:
                raise Refused(
                    ErrorCode.UNAVAILABLE, "the server is stopping", retryable=True, retry_after=2.0
                )
            if live.turn is not None:
                raise _speaking(live.turn)
            check_live_turns(self._chats.speaking(), self._limits.live_turns)
            persona = self._persona(live.chat.persona_id)
            record = TurnRecord(
                id=new_id("t"), request=frame.id, user_message=new_id("m"), reply=new_id("m")
            )
            user = StoredMessage(
                id=record.user_message,
                parent=live.chat.head,
                role=Role.USER,
                name=live.chat.user,
                text=frame.text,
                turn=record.id,
            )
            reply = StoredMessage(
                id=record.reply,
                parent=user.id,
                role=Role.ASSISTANT,
                name=persona.speaks_as,
                text="",
                turn=record.id,
                status=None,
            )
            await self._history.accept(live.chat.id, record, user, reply)
            live.chat = live.chat.accept(record, user, reply)
            live.turn = speech = _Speech(record, began)
            live.publish(_accepted(live.chat, record), asker, frame.id)
            self._spawn(self._run(live, speech, reply))

    async def use(self, frame: ChatUse, asker: Watcher) -> None:
        """Chooses the backend of a chat's later turns.

        Raises `Refused` (`unknown_backend`, `turn_in_progress`) and `HistoryError`.
        """
        live = await self._chats.get(frame.chat)
        chosen = self._ensemble.get(frame.backend)
        async with live.accepting:
            if live.turn is not None:
                raise _speaking(live.turn)
            await self._history.use(live.chat.id, chosen.backend.name)
            live.chat = replace(live.chat, backend=chosen.backend.name)
            chosen.begin()
            live.publish(
                ChatUpdated(chat=live.chat.id, backend=chosen.backend.name), asker, frame.id
            )

    def cancel(self, live: LiveChat, frame: TurnCancel) -> None:
        """Stops a reply. Raises `Refused` (`unknown_turn`, `turn_over`)."""
        if all(record.id != frame.turn for record in live.chat.turns):
            raise Refused(ErrorCode.UNKNOWN_TURN, f"no turn {frame.turn!r} in this chat")
        turn = live.turn
        stop = _Outcome(signal=Signal.CANCEL, status=MessageStatus.CANCELLED)
        if not isinstance(turn, _Speech) or turn.record.id != frame.turn or not turn.stop(stop):
            raise Refused(ErrorCode.TURN_OVER, "this reply has ended")

    async def drain(self, grace: float) -> None:
        """Refuses new turns, waits `grace` seconds for live ones, then stores them as cut."""
        self.draining = True
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=grace)
        error = BackendError(
            BackendErrorCode.UNAVAILABLE, "the server stopped during this reply", retryable=True
        )
        for live in self._chats.live():
            if isinstance(live.turn, _Speech):
                live.turn.stop(
                    _Outcome(
                        signal=Signal.FAIL,
                        status=MessageStatus.INTERRUPTED,
                        error=describe(error),
                    )
                )
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _run(self, live: LiveChat, speech: _Speech, reply: StoredMessage) -> None:
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(
            conversation=live.chat.id, turn=speech.record.id, persona=live.chat.persona_id
        )
        log.info("turn_accepted")
        throttle = Throttle(lambda text: _publish_text(live, speech, text), COALESCE)
        speech.speaking = asyncio.create_task(self._speak(live, speech, throttle))
        if speech.stopped:  # before it began
            speech.speaking.cancel()
        await asyncio.wait({speech.speaking})
        throttle.flush()
        await self._settle(live, speech, reply, _outcome(speech))

    async def _speak(self, live: LiveChat, speech: _Speech, throttle: Throttle) -> Finished:
        standby = self._ensemble.of(live.chat.backend)
        async with deadline(self._limits.turn_seconds):
            model = await standby.ready(self._limits.ready_seconds)
            persona = self._library.get(live.chat.persona_id)
            conversation = live.chat.conversation()
            costs = await standby.costs(prompt_texts(persona, conversation))
            turn = render(
                persona,
                conversation,
                turn_id=speech.record.id,
                tenant=TENANT,
                sampling=self._sampling,
                budget=Budget(model.context, self._sampling.max_tokens, costs),
            )
            speech.signal(Signal.START)
            live.publish(
                TurnStarted(
                    chat=live.chat.id,
                    turn=speech.record.id,
                    backend=standby.backend.name,
                    model=model.model,
                )
            )
            checkpoint = time.perf_counter() + CHECKPOINT
            async with contextlib.aclosing(standby.backend.stream(turn)) as stream:
                async for event in stream:
                    if isinstance(event, Finished):
                        return event
                    if not isinstance(event, TextDelta) or not event.text:
                        continue  # the wire of this version does not carry thoughts
                    now = time.perf_counter()
                    speech.first = speech.first or now
                    speech.spoken.append(event.text)
                    throttle.add(event.text)
                    if now >= checkpoint:
                        checkpoint = now + CHECKPOINT
                        text = "".join(speech.spoken)
                        self._spawn(self._checkpoint(speech.record.reply, text))
        raise BackendError(BackendErrorCode.CUT, "the reply ended without an end", retryable=True)

    async def _checkpoint(self, reply_id: str, text: str) -> None:
        # The final write says whether the reply is stored; a lost checkpoint loses half a second.
        try:
            await self._history.checkpoint(reply_id, text)
        except HistoryError as error:
            log.warning("checkpoint_failed", error=error.message)

    async def _settle(
        self, live: LiveChat, speech: _Speech, reply: StoredMessage, outcome: _Outcome
    ) -> None:
        reply = replace(
            reply,
            text=speech.text,
            status=outcome.status,
            stats=_stats(speech, outcome.finished),
            sampled=outcome.finished.sampled if outcome.finished else None,
        )
        try:
            await self._history.finish(reply, outcome.error)
        except HistoryError as failure:
            log.error("reply_not_stored", error=failure.message)
            refused = Refused(ErrorCode.STORAGE_FAILED, failure.message, retryable=True)
            outcome = _Outcome(
                signal=Signal.FAIL, status=MessageStatus.FAILED, error=describe(refused)
            )
            reply = replace(reply, status=outcome.status)
        speech.signal(outcome.signal)
        live.chat = live.chat.settle(reply)
        live.turn = None
        live.publish(_terminal(live.chat, speech, reply, outcome))
        log.info(
            "turn_ended",
            status=outcome.status.value,
            error=outcome.error.code if outcome.error else None,
            ttft_ms=round((speech.first - speech.began) * 1e3, 1) if speech.first else None,
            prompt_tokens=reply.stats.prompt_tokens if reply.stats else None,
            cached_tokens=reply.stats.cached_tokens if reply.stats else None,
        )

    def _persona(self, persona_id: str) -> Persona:
        try:
            return self._library.get(persona_id)
        except PersonaNotFound as error:
            raise Refused(
                ErrorCode.UNKNOWN_PERSONA, error.message, detail={"nearest": error.nearest}
            ) from error

    def _spawn(self, work: Coroutine[object, object, R]) -> asyncio.Task[R]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._reap)
        return task

    def _reap(self, task: asyncio.Task[object]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, (Refused, HistoryError)):
            log.error("task_failed", exc_info=error)


def _publish_text(live: LiveChat, speech: _Speech, text: str) -> None:
    speech.signal(Signal.TEXT)
    off = speech.add(text)
    live.publish(TurnDelta(chat=live.chat.id, turn=speech.record.id, off=off, text=text))


@contextlib.asynccontextmanager
async def deadline(seconds: float) -> AsyncGenerator[None, None]:
    """Ends what is inside after `seconds` with a `BackendError` (TIMEOUT)."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError as error:
        raise BackendError(
            BackendErrorCode.TIMEOUT, f"no whole reply within {seconds:g} s", retryable=True
        ) from error


def _outcome(speech: _Speech) -> _Outcome:
    """How the speaking ended; a reply that came to its end beats a stop that came too late."""
    assert speech.speaking is not None
    try:
        finished = speech.speaking.result()
    except (Exception, asyncio.CancelledError) as failure:
        return speech.stopped or _Outcome(
            signal=Signal.FAIL, status=MessageStatus.FAILED, error=describe(failure)
        )
    return _Outcome(
        signal=Signal.FINISH, status=MessageStatus(finished.reason.value), finished=finished
    )


def _speaking(turn: LiveTurn) -> Refused:
    return Refused(
        ErrorCode.TURN_IN_PROGRESS,
        "a reply is being spoken in this chat; stop it or wait",
        retryable=True,
        detail={"turn": turn.record.id},
    )


def _accepted(chat: Chat, record: TurnRecord) -> TurnAccepted:
    return TurnAccepted(
        chat=chat.id,
        turn=record.id,
        user_message=chat.message(record.user_message).wire(),
        reply_id=record.reply,
    )


def _terminal(
    chat: Chat, speech: _Speech, reply: StoredMessage, outcome: _Outcome
) -> TurnDone | TurnCancelled | TurnFailed:
    turn, message = speech.record.id, reply.wire()
    if speech.state is TurnState.CANCELLED:
        return TurnCancelled(chat=chat.id, turn=turn, message=message)
    if outcome.error is not None:
        return TurnFailed(chat=chat.id, turn=turn, error=outcome.error, message=message)
    assert outcome.finished is not None
    return TurnDone(chat=chat.id, turn=turn, reason=outcome.finished.reason, message=message)


def _stats(speech: _Speech, finished: Finished | None) -> Stats | None:
    """What the reply cost; None when the backend did not come to its end, so nobody counted."""
    if finished is None:
        return None
    usage, timings = finished.usage, finished.timings
    first = speech.first or time.perf_counter()
    # The first token is paid for by the prefill, so the rate is that of the others.
    rate = (usage.completion_tokens - 1) / timings.decode_ms * 1e3 if timings.decode_ms > 0 else 0.0
    return Stats(
        ttft_ms=round((first - speech.began) * 1e3, 1),
        tokens_per_s=round(max(rate, 0.0), 1),
        prompt_tokens=usage.prompt_tokens,
        cached_tokens=usage.cached_tokens,
        completion_tokens=usage.completion_tokens,
        cached_by_tier=dict(usage.cached_by_tier),
        miss=usage.miss,
    )
