"""One reply being spoken: sampled tokens in, turn events out. No torch.

A `Generation` ties a turn to its request, sampler and detokenizer; the engine feeds it the tokens
that it asked for (`take`), and lets it `speak` when nobody waits for the engine. Every event goes
to `emit`, on the engine's thread.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from backends.api import (
    Finished,
    FinishReason,
    SampledTokens,
    TextDelta,
    Timings,
    Usage,
)
from backends.local.detokenize import Detokenizer
from backends.local.drafts import Drafts
from backends.local.request import Request, State
from backends.local.sampling import Sampler

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from backends.api import Turn, TurnEvent
    from backends.errors import BackendError
    from backends.local.sampling import Draw
    from backends.local.template import Prompt

    Emit = Callable[[TurnEvent | BackendError], None]

__all__ = ["Clocks", "Generation", "Vocabulary"]


class Vocabulary(Protocol):
    """What a reply needs of a tokenizer."""

    @property
    def digest(self) -> str: ...

    def encode_text(self, text: str) -> Sequence[int]: ...

    def token_bytes(self, token_id: int) -> bytes: ...


@dataclass(slots=True)
class Clocks:
    """Moments of one turn, in seconds of one monotonic clock."""

    arrived: float
    admitted: float = 0.0
    restored: float = 0.0
    first: float = 0.0
    last: float = 0.0

    def timings(self) -> Timings:
        return Timings(
            queue_ms=(self.admitted - self.arrived) * 1e3,
            restore_ms=(self.restored - self.admitted) * 1e3,
            prefill_ms=(self.first - self.restored) * 1e3,
            ttft_ms=(self.first - self.arrived) * 1e3,
            decode_ms=(self.last - self.first) * 1e3,
        )


class Generation:
    """A turn from its prompt to its `Finished`."""

    def __init__(
        self,
        id: int,
        turn: Turn,
        prompt: Prompt,
        *,
        vocabulary: Vocabulary,
        context: int,
        emit: Emit,
        arrived: float,
    ) -> None:
        """`context` leaves room for at least one token behind the prompt."""
        assert len(prompt.ids) < context
        self.request = Request(id, turn.tenant, prompt.ids, arrived=arrived)
        self.turn = turn
        self.prompt = prompt
        self.boundaries = prompt.boundaries
        self.clocks = Clocks(arrived)
        self.emit = emit
        self._vocabulary = vocabulary
        self._end_ids = prompt.end_ids
        self._sampler = Sampler(turn.sampling, prompt.ids, prompt.not_first_ids)
        self._detokenizer = Detokenizer((*prompt.stops, *turn.sampling.stop))
        self.most_tokens = len(prompt.ids) + min(
            turn.sampling.max_tokens, context - len(prompt.ids)
        )
        """The length of the sequence if the reply takes all that it may."""
        self._drafts: Drafts | None = None  # made when guesses are first asked for
        self._spoken_len = len(prompt.ids)
        self._reason: FinishReason | None = None

    def ask(self, guesses: Sequence[int] = ()) -> list[Draw]:
        """The draw of the next token, and of the one behind each guess."""
        return self._sampler.ask(guesses)

    def take(self, token: int | None, now: float) -> None:
        """Goes on with the token drawn; its text waits for `speak`.

        The request is `ENDING` when the reply ends here for sure: at an end token, or at its bound.
        `now` is the moment the logits were there. Raises `ValueError` for None: broken logits.
        """
        if token is None:
            raise ValueError("the model gave no finite logit")
        self._sampler.take(token)
        request, clocks = self.request, self.clocks
        request.append(token)
        clocks.first = clocks.first or now
        clocks.last = now
        if token in self._end_ids:
            self._reason = FinishReason.COMPLETE
        elif len(request.tokens) >= self.most_tokens:
            self._reason = FinishReason.LENGTH
        else:
            return
        request.move(State.ENDING)

    def speak(self) -> FinishReason | None:
        """Sends the text of what was taken since the last call; says why the reply ends with it.

        A stop string ends it as well: tokens that were taken behind one are cut off the request.
        """
        tokens = self.request.tokens
        for at in range(self._spoken_len, len(tokens)):
            if tokens[at] in self._end_ids:
                break
            self._send(self._detokenizer.push(self._vocabulary.token_bytes(tokens[at])))
            if self._detokenizer.stopped:
                self.request.cut(at + 1)
                self._reason = FinishReason.COMPLETE
                break
        self._spoken_len = len(tokens)
        return self._reason

    def drafts(self, most: int) -> list[int]:
        """Guesses at the tokens behind the newest, as many as the reply may still take."""
        if self._drafts is None:
            self._drafts = Drafts(self.request.tokens)
        for token in self.request.tokens[len(self._drafts) :]:
            self._drafts.push(token)
        left = self.most_tokens - len(self.request.tokens)
        return self._drafts.propose(min(most, left - 1)) if left > 1 else []

    def finish(
        self,
        reason: FinishReason,
        *,
        by_tier: tuple[tuple[str, int], ...],
        miss: str,
        differs_at: int | None,
        saved_ms: float,
    ) -> None:
        """Sends what was held back, then `Finished`."""
        self._send(self._detokenizer.finish())
        request = self.request
        usage = Usage(
            prompt_tokens=request.prompt_len,
            cached_tokens=request.restored_len,
            completion_tokens=len(request.tokens) - request.prompt_len,
            cached_by_tier=by_tier,
            miss=miss,
            differs_at=differs_at,
        )
        timings = replace(self.clocks.timings(), saved_ms=saved_ms)
        self.emit(Finished(reason, usage, timings, self._sampled()))

    def kept_tokens(self) -> list[int]:
        """The prompt and what the reply kept of the sampled ids, as far as their KV exists.

        This is the prefix that the conversation's next prompt begins with. Ends the reply's text.
        """
        self._detokenizer.finish()
        kept_len = self.request.prompt_len + self._detokenizer.kept().token_count
        return self.request.tokens[: min(kept_len, self.request.computed_len)]

    def _sampled(self) -> SampledTokens:
        kept = self._detokenizer.kept()
        ids = self.request.sampled[: kept.token_count]
        if kept.remainder:
            ids += self._vocabulary.encode_text(kept.remainder)
        return SampledTokens(self._vocabulary.digest, tuple(ids))

    def _send(self, text: str) -> None:
        if text:
            self.emit(TextDelta(text))
