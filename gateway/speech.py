"""A reply while it is spoken: its text, clocks and stop, and how it came to its end."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gateway.chats import LiveTurn
from gateway.failures import describe
from gateway.lifecycle import Signal, TurnState
from gateway.protocol import (
    Error,
    MessageStatus,
    Stats,
    TurnCancelled,
    TurnDelta,
    TurnDone,
    TurnFailed,
)

if TYPE_CHECKING:
    from backends.api import Finished
    from gateway.chats import LiveChat
    from gateway.history import Chat, StoredMessage, TurnRecord

__all__ = ["Outcome", "Speech", "outcome_of", "publish_text", "stats_of", "terminal"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a turn ended, before that is stored."""

    signal: Signal
    status: MessageStatus
    error: Error | None = None
    finished: Finished | None = None


class Speech(LiveTurn):
    """A live turn with its task and clocks; `backend` is known once it speaks."""

    def __init__(self, record: TurnRecord, began: float) -> None:
        super().__init__(record)
        self.began = began
        self.backend = ""
        self.first: float | None = None
        self.spoken: list[str] = []
        self.stopped: Outcome | None = None
        self.speaking: asyncio.Task[Finished] | None = None

    def stop(self, outcome: Outcome) -> bool:
        """Ends the speaking within one step; False when it had ended."""
        if self.stopped or (self.speaking is not None and self.speaking.done()):
            return False
        self.stopped = outcome
        if self.speaking is not None:
            self.speaking.cancel()
        return True


def publish_text(live: LiveChat, speech: Speech, text: str) -> None:
    """Sends more text of the reply to the chat's watchers."""
    speech.signal(Signal.TEXT)
    off = speech.add(text)
    live.publish(TurnDelta(chat=live.chat.id, turn=speech.record.id, off=off, text=text))


def outcome_of(speech: Speech) -> Outcome:
    """How the speaking ended; a reply that came to its end beats a stop that came too late."""
    assert speech.speaking is not None
    try:
        finished = speech.speaking.result()
    except (Exception, asyncio.CancelledError) as failure:
        return speech.stopped or Outcome(
            signal=Signal.FAIL, status=MessageStatus.FAILED, error=describe(failure)
        )
    return Outcome(
        signal=Signal.FINISH, status=MessageStatus(finished.reason.value), finished=finished
    )


def terminal(
    chat: Chat, speech: Speech, reply: StoredMessage, outcome: Outcome
) -> TurnDone | TurnCancelled | TurnFailed:
    """The event that ends the turn."""
    turn, message = speech.record.id, reply.wire()
    if speech.state is TurnState.CANCELLED:
        return TurnCancelled(chat=chat.id, turn=turn, message=message)
    if outcome.error is not None:
        return TurnFailed(chat=chat.id, turn=turn, error=outcome.error, message=message)
    assert outcome.finished is not None
    return TurnDone(chat=chat.id, turn=turn, reason=outcome.finished.reason, message=message)


def stats_of(speech: Speech, finished: Finished | None) -> Stats | None:
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
        backend=speech.backend,
        restore_ms=round(timings.restore_ms, 1),
        saved_ms=round(timings.saved_ms, 1),
        differs_at=usage.differs_at,
    )
