"""One turn end to end: accept, store, render, speak, publish, settle.

The server owns the generation: a turn runs in its own task, whatever becomes of the socket that
asked. `_run` is never cancelled; what a stop cancels is the task inside it that speaks.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

import structlog

from backends.api import Finished, Role, TextDelta
from backends.errors import BackendError, BackendErrorCode
from gateway.beginning import begin, change
from gateway.errors import ErrorCode, HistoryError, Refused
from gateway.failures import describe
from gateway.history import StoredMessage, TurnRecord
from gateway.ids import new_id
from gateway.lifecycle import Signal
from gateway.limits import check_live_turns, check_text
from gateway.protocol import ChatDeleted, MessageStatus, TurnAccepted, TurnStarted
from gateway.speech import Outcome, Speech, outcome_of, publish_text, stats_of, terminal
from gateway.throttle import Throttle
from personas.persona import PersonaNotFound

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Coroutine, Sequence

    from gateway.characters import Characters
    from gateway.chats import Chats, LiveChat, LiveTurn, Watcher
    from gateway.composing import Composer
    from gateway.config import ServerConfig
    from gateway.ensemble import Ensemble
    from gateway.history import Chat, History
    from gateway.metrics import Metrics
    from gateway.protocol import ChatOpen, ChatSet, ChatUse, TurnCancel, TurnCreate
    from personas.conversation import Conversation
    from personas.persona import Persona

__all__ = ["Turns"]

log = structlog.get_logger()

COALESCE = 0.025
CHECKPOINT = 0.5

R = TypeVar("R")


class Turns:
    """Opens chats, and creates, stops and drains turns."""

    def __init__(
        self,
        *,
        chats: Chats,
        history: History,
        characters: Characters,
        ensemble: Ensemble,
        composer: Composer,
        limits: ServerConfig,
        metrics: Metrics,
    ) -> None:
        self._chats = chats
        self._history = history
        self._characters = characters
        self._ensemble = ensemble
        self._composer = composer
        self._limits = limits
        self._metrics = metrics
        self._tasks: set[asyncio.Task[object]] = set()
        self._opened: dict[ChatOpen, str] = {}
        self.draining = False

    async def open(self, frame: ChatOpen) -> LiveChat:
        """A new chat with the persona's greeting; the same one again for a repeated request.

        Raises `Refused` (`unknown_persona`, `unknown_backend`, `bad_field`) and `HistoryError`.
        """
        if frame not in self._opened:
            backend = self._ensemble.get(frame.backend).backend.name if frame.backend else ""
            chat = begin(frame, self.persona(frame.persona), backend)
            await self._chats.add(chat)
            log.info("chat_opened", conversation=chat.id, persona=chat.persona_id)
            self._opened[frame] = chat.id
            if len(self._opened) > 1024:
                del self._opened[next(iter(self._opened))]
        return await self._chats.get(self._opened[frame])

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
            persona = await self._of_chat(live.chat)
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
            live.turn = speech = Speech(record, began)
            live.publish(_accepted(live.chat, record), asker, frame.id)
            # What is changed from now on is for the next turn.
            self._spawn(self._run(live, speech, reply, persona, live.chat.conversation()))

    async def use(self, frame: ChatUse, asker: Watcher) -> None:
        """Chooses the backend of a chat's later turns.

        Raises `Refused` (`unknown_backend`, `turn_in_progress`) and `HistoryError`.
        """
        live = await self._chats.get(frame.chat)
        # As with a turn: the choice is made whole or not at all.
        await asyncio.shield(self._spawn(self._choose(live, frame, asker)))

    async def _choose(self, live: LiveChat, frame: ChatUse, asker: Watcher) -> None:
        chosen = self._ensemble.get(frame.backend)
        async with live.accepting:
            if frame.id not in live.changes:
                if live.turn is not None:
                    raise _speaking(live.turn)
                chosen.begin()
            await self._change(live, replace(live.chat, backend=frame.backend), frame.id, asker)
        log.info("backend_chosen", conversation=live.chat.id, backend=frame.backend)

    async def set(self, frame: ChatSet, asker: Watcher) -> None:
        """Changes who the person is, the author's note or the greeting, from the next turn on.

        Raises `Refused` (`chat_begun`, `bad_field`, `unknown_persona`) and `HistoryError`.
        """
        live = await self._chats.get(frame.chat)
        await asyncio.shield(self._spawn(self._set(live, frame, asker)))

    async def _set(self, live: LiveChat, frame: ChatSet, asker: Watcher) -> None:
        async with live.accepting:
            if frame.id in live.changes:
                changed = live.chat
            else:
                changed = change(live.chat, frame, await self._of_chat(live.chat))
            await self._change(live, changed, frame.id, asker)

    async def _change(self, live: LiveChat, changed: Chat, request: str, asker: Watcher) -> None:
        """Stores and tells a change of a chat, once a request; `live.accepting` is held."""
        if request in live.changes:
            asker.deliver(replace(live.updated(), re=request))  # no new event, so no number
            return
        await self._history.update(changed)
        live.chat = changed
        live.changes.append(request)
        live.publish(live.updated(), asker, request)

    async def delete(self, chat_id: str, backends: Sequence[str]) -> None:
        """Deletes a chat, with all that was said in it, and notes it for these backends.

        Raises `Refused` (`unknown_chat`, `turn_in_progress`) and `HistoryError`.
        """
        live = await self._chats.get(chat_id)
        await asyncio.shield(self._spawn(self._delete(live, tuple(backends))))

    async def _delete(self, live: LiveChat, backends: tuple[str, ...]) -> None:
        async with live.accepting:
            if live.turn is not None:
                raise _speaking(live.turn)
            await self._history.delete(live.chat.id, backends)
            self._chats.drop(live.chat.id)
            self._opened = {k: v for k, v in self._opened.items() if v != live.chat.id}
            live.publish(ChatDeleted(chat=live.chat.id))
            live.watchers.clear()
        log.info("chat_deleted", conversation=live.chat.id)

    async def pin(self, chat_id: str, revision: str | None = None) -> Persona:
        """Lets a chat go on with another revision of its persona, by default the newest.

        Raises `Refused` (`unknown_chat`, `unknown_persona`, `turn_in_progress`), `HistoryError`.
        """
        live = await self._chats.get(chat_id)
        return await asyncio.shield(self._spawn(self._pin(live, revision)))

    async def _pin(self, live: LiveChat, revision: str | None) -> Persona:
        async with live.accepting:
            if live.turn is not None:
                raise _speaking(live.turn)
            try:
                persona = (
                    self.persona(live.chat.persona_id)
                    if revision is None
                    else await self._characters.at(live.chat.persona_id, revision)
                )
            except PersonaNotFound as error:
                raise _unknown(error) from error
            await self._history.pin(live.chat.id, persona.revision)
            live.chat = replace(live.chat, persona_revision=persona.revision)
        log.info("revision_pinned", conversation=live.chat.id, rev=persona.revision)
        return persona

    def cancel(self, live: LiveChat, frame: TurnCancel) -> None:
        """Stops a reply. Raises `Refused` (`unknown_turn`, `turn_over`)."""
        if all(record.id != frame.turn for record in live.chat.turns):
            raise Refused(ErrorCode.UNKNOWN_TURN, f"no turn {frame.turn!r} in this chat")
        turn = live.turn
        stop = Outcome(signal=Signal.CANCEL, status=MessageStatus.CANCELLED)
        if not isinstance(turn, Speech) or turn.record.id != frame.turn or not turn.stop(stop):
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
            if isinstance(live.turn, Speech):
                live.turn.stop(
                    Outcome(
                        signal=Signal.FAIL,
                        status=MessageStatus.INTERRUPTED,
                        error=describe(error),
                    )
                )
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _run(
        self,
        live: LiveChat,
        speech: Speech,
        reply: StoredMessage,
        persona: Persona,
        said: Conversation,
    ) -> None:
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(
            conversation=live.chat.id, turn=speech.record.id, persona=live.chat.persona_id
        )
        log.info("turn_accepted")
        throttle = Throttle(lambda text: publish_text(live, speech, text), COALESCE)
        speech.speaking = asyncio.create_task(self._speak(live, speech, throttle, persona, said))
        if speech.stopped:  # before it began
            speech.speaking.cancel()
        await asyncio.wait({speech.speaking})
        throttle.flush()
        await self._settle(live, speech, reply, outcome_of(speech))

    async def _speak(
        self,
        live: LiveChat,
        speech: Speech,
        throttle: Throttle,
        persona: Persona,
        said: Conversation,
    ) -> Finished:
        standby = self._ensemble.of(live.chat.backend)
        async with deadline(self._limits.turn_seconds):
            turn = await self._composer.compose(standby, persona, said, speech.record.id)
            model = await standby.ready(0)
            speech.backend = standby.backend.name
            speech.signal(Signal.START)
            live.publish(
                TurnStarted(
                    chat=live.chat.id,
                    turn=speech.record.id,
                    backend=speech.backend,
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
        self, live: LiveChat, speech: Speech, reply: StoredMessage, outcome: Outcome
    ) -> None:
        reply = replace(
            reply,
            text=speech.text,
            status=outcome.status,
            stats=stats_of(speech, outcome.finished),
            error=outcome.error,
            sampled=outcome.finished.sampled if outcome.finished else None,
        )
        try:
            await self._history.finish(reply)
        except HistoryError as failure:
            log.error("reply_not_stored", error=failure.message)
            refused = Refused(ErrorCode.STORAGE_FAILED, failure.message, retryable=True)
            outcome = Outcome(
                signal=Signal.FAIL, status=MessageStatus.FAILED, error=describe(refused)
            )
            reply = replace(reply, status=outcome.status, error=outcome.error)
        speech.signal(outcome.signal)
        live.chat = live.chat.settle(reply)
        live.turn = None
        live.publish(terminal(live.chat, speech, reply, outcome))
        self._metrics.count(reply, speech.backend)
        log.info(
            "turn_ended",
            status=outcome.status.value,
            error=outcome.error.code if outcome.error else None,
            ttft_ms=round((speech.first - speech.began) * 1e3, 1) if speech.first else None,
            prompt_tokens=reply.stats.prompt_tokens if reply.stats else None,
            cached_tokens=reply.stats.cached_tokens if reply.stats else None,
        )

    def persona(self, persona_id: str) -> Persona:
        """The character as it is now. Raises `Refused` (`unknown_persona`)."""
        try:
            return self._characters.library.get(persona_id)
        except PersonaNotFound as error:
            raise _unknown(error) from error

    async def _of_chat(self, chat: Chat) -> Persona:
        try:
            return await self._characters.of_chat(chat.persona_id, chat.persona_revision)
        except PersonaNotFound as error:
            raise _unknown(error) from error

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


def _unknown(error: PersonaNotFound) -> Refused:
    return Refused(ErrorCode.UNKNOWN_PERSONA, error.message, detail={"nearest": error.nearest})


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
