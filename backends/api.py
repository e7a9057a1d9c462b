"""The contract of a backend: turns in, a stream of events out. Standard library only.

Every implementation runs the conformance suite in `backends.testing`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

__all__ = [
    "Backend",
    "BackendState",
    "BackendStatus",
    "Capabilities",
    "FinishReason",
    "Finished",
    "Message",
    "Role",
    "SampledTokens",
    "Sampling",
    "TextDelta",
    "ThoughtDelta",
    "TierCounters",
    "Timings",
    "Turn",
    "TurnEvent",
    "Usage",
]


class Role(StrEnum):
    """Who a message speaks for."""

    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a prompt: a pure value, equal when its content is equal.

    `name` is the speaker's display name; transcript-form prompts and stop rules are made from it.
    """

    role: Role
    text: str
    name: str | None = None


@dataclass(frozen=True, slots=True)
class SampledTokens:
    """The token ids that an engine sampled for one reply.

    Re-tokenising a reply's text can give other ids than were sampled, which would end the shared
    KV prefix there. `tokenizer` names the vocabulary the ids belong to; an engine with another
    tokenizer ignores them and tokenises the text.
    """

    tokenizer: str
    ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is drawn.

    `temperature` 0 is greedy. `top_k` 0, `top_p` 1 and `min_p` 0 switch those filters off;
    `repetition_penalty` 1 is none. `seed` fixes the draw; None draws a fresh one per turn.
    `stop` strings end the reply and never appear in it. `max_tokens` counts sampled tokens.

    Raises `ValueError` naming the field when a value is out of range.
    """

    temperature: float = 0.8
    top_k: int = 0
    top_p: float = 0.95
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    max_tokens: int = 200
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        checks = {
            "temperature": 0.0 <= self.temperature <= 5.0,
            "top_k": self.top_k >= 0,
            "top_p": 0.0 < self.top_p <= 1.0,
            "min_p": 0.0 <= self.min_p < 1.0,
            "repetition_penalty": 0.1 <= self.repetition_penalty <= 10.0,
            "seed": self.seed is None or 0 <= self.seed < 2**63,
            "max_tokens": 1 <= self.max_tokens <= 32768,
            "stop": len(self.stop) <= 16 and all(0 < len(s) <= 256 for s in self.stop),
        }
        for name, ok in checks.items():
            if not ok:
                raise ValueError(f"sampling.{name} out of range: {getattr(self, name)!r}")


@dataclass(frozen=True, slots=True)
class Turn:
    """One request for a reply.

    `messages` is the whole prompt in order; the first `stable` of them stay byte-identical in
    later turns of the conversation. `speaker` is the name of whoever speaks next.
    `sampled[i]`, when `sampled` is not empty, holds the ids sampled for `messages[i]` or None.
    `tenant` and `conversation` scope cached KV; neither reaches the model. The first `shared`
    messages come from the persona alone: they are the same in every chat with `persona`
    (`id@revision`) under the same user name, and cached once for all of them.
    """

    id: str
    messages: tuple[Message, ...]
    speaker: str
    stable: int = 0
    sampling: Sampling = field(default_factory=Sampling)
    tenant: str = "local"
    conversation: str = ""
    sampled: tuple[SampledTokens | None, ...] = ()
    shared: int = 0
    persona: str = ""

    def __post_init__(self) -> None:
        if self.sampled and len(self.sampled) != len(self.messages):
            raise ValueError("turn.sampled must be empty or as long as turn.messages")
        if not 0 <= self.stable <= len(self.messages):
            raise ValueError(f"turn.stable out of range: {self.stable}")
        if not 0 <= self.shared <= self.stable:
            raise ValueError(f"turn.shared out of range: {self.shared}")
        if not 0 <= self.shared <= self.stable:
            raise ValueError(f"turn.shared out of range: {self.shared}")


class FinishReason(StrEnum):
    """Why a reply that was not cut and not cancelled ended."""

    COMPLETE = "complete"
    """The model ended it, or a stop string did."""
    LENGTH = "length"
    """`max_tokens` or the context ended it."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of one turn. `cached_by_tier` sums to `cached_tokens`.

    `miss` says why the rest of the prompt was not cached (`""` when nothing was missed):
    a short `noun_verb`-like word of the store, for people who ask why a reply was slow.
    `differs_at` is the first prompt token that is not what the conversation had there before;
    None where it only grew, or where nobody knows.
    """

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    cached_by_tier: tuple[tuple[str, int], ...] = ()
    miss: str = ""
    differs_at: int | None = None


@dataclass(frozen=True, slots=True)
class Timings:
    """Where the time of one turn went, in milliseconds, as the backend saw it.

    `ttft_ms` runs from the arrival of the turn to its first token; `decode_ms` from the first
    token to the last. `saved_ms` is what computing the restored tokens would have taken longer, by
    the backend's own measure; 0 while it has none.
    """

    queue_ms: float = 0.0
    restore_ms: float = 0.0
    prefill_ms: float = 0.0
    ttft_ms: float = 0.0
    decode_ms: float = 0.0
    saved_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class TextDelta:
    """More text of the reply; never half a character, never part of a stop string."""

    text: str


@dataclass(frozen=True, slots=True)
class ThoughtDelta:
    """More text of the model's reasoning, where a model shows it."""

    text: str


@dataclass(frozen=True, slots=True)
class Finished:
    """The last event of a stream that came to its own end."""

    reason: FinishReason
    usage: Usage = field(default_factory=Usage)
    timings: Timings = field(default_factory=Timings)
    sampled: SampledTokens | None = None


TurnEvent = TextDelta | ThoughtDelta | Finished


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a started backend is.

    `context` counts tokens; `exact_count` says whether `count` uses the model's own tokenizer or
    estimates. `notice` is a licence notice to show to people. `sampling` is what suits the model:
    where nobody asks for anything else, turns are drawn so.
    """

    model: str
    context: int
    exact_count: bool = True
    notice: str = ""
    sampling: Sampling = field(default_factory=Sampling)


class BackendState(StrEnum):
    """Whether a backend can take a turn."""

    STARTING = "starting"
    READY = "ready"
    DOWN = "down"


@dataclass(frozen=True, slots=True)
class BackendStatus:
    """A snapshot for health pages: `detail` is one line for people."""

    state: BackendState
    detail: str = ""


@dataclass(frozen=True, slots=True)
class TierCounters:
    """What one tier of a KV cache did since it was opened, and what it holds now."""

    name: str
    blocks: int = 0
    bytes: int = 0
    hits: int = 0
    misses: int = 0
    stored: int = 0
    evicted: int = 0
    damaged: int = 0
    refused: int = 0
    errors: int = 0


class Backend(Protocol):
    """Something that can speak a turn.

    The law of `stream`, which `backends.testing` checks:

    - nothing happens before the first iteration, nothing after `Finished`;
    - exactly one `Finished`, last; a failure is a raised `BackendError` and nothing else;
    - closing the generator *is* cancelling: it returns within a bound and frees the work;
    - a stream that the provider cut raises; it never ends as `complete`.
    """

    name: str
    keeps: bool
    """Whether it keeps what people said beyond a turn, so that deleting must reach it."""

    async def start(self) -> Capabilities:
        """Starts the backend if need be and waits until it can take turns. Idempotent.

        Raises `BackendError` when it cannot (missing model, bad credentials).
        """
        ...

    def status(self) -> BackendStatus:
        """The state now; never blocks."""
        ...

    def stream(self, turn: Turn) -> AsyncGenerator[TurnEvent, None]:
        """Speaks the turn; see the law above."""
        ...

    async def count(self, texts: Sequence[str]) -> tuple[int, ...]:
        """The tokens each text costs in a prompt, its share of the template included."""
        ...

    async def prefetch(self, turn: Turn) -> None:
        """Somebody is about to ask for this turn, or one that goes on from it: gets ready.

        A hint: returns at once and never raises.
        """
        ...

    async def retire(self, tenant: str, conversation: str) -> None:
        """Somebody left this conversation: what is cached for it goes first. Never raises."""
        ...

    async def forget(self, tenant: str, owner: str | None) -> int:
        """Deletes what is cached of an owner, wherever it lies; how many pieces that was.

        `owner` is `conversation:ID` or `persona:ID@REVISION`; None is the whole tenant. Raises
        `BackendError` when it could not be deleted whole.
        """
        ...

    async def tiers(self) -> tuple[TierCounters, ...]:
        """The counters of each tier of the KV cache, fastest first. Raises `BackendError`."""
        ...

    async def aclose(self) -> None:
        """Ends every stream and frees everything. Idempotent."""
        ...
