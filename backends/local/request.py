"""One request inside the engine: where it stands and which of its tokens have KV. Pure.

Token positions, half-open:

    0 ...... restored_len ...... computed_len ...... len(tokens)
    |- from the store -|- computed here -|- not yet computed -|

    [0, prompt_len)             the prompt
    [prompt_len, len(tokens))   sampled
    PREFILL                     computed_len < prompt_len == len(tokens)
    DECODE, ENDING              computed_len == len(tokens) - 1: the newest token has no KV yet
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["TRANSITIONS", "Request", "State"]


class State(StrEnum):
    """Where a request stands."""

    QUEUED = "queued"
    LOADING = "loading"
    """Admitted; its stored prefix is on the way."""
    PREFILL = "prefill"
    DECODE = "decode"
    ENDING = "ending"
    """Its last token is sampled; nobody was told yet."""
    ENDED = "ended"


TRANSITIONS: dict[State, frozenset[State]] = {
    State.QUEUED: frozenset({State.LOADING, State.PREFILL, State.ENDED}),
    State.LOADING: frozenset({State.PREFILL, State.ENDED}),
    State.PREFILL: frozenset({State.DECODE, State.ENDED}),
    State.DECODE: frozenset({State.ENDING, State.ENDED}),
    State.ENDING: frozenset({State.ENDED}),
    State.ENDED: frozenset(),
}


class Request:
    """A prompt on its way to a reply. The engine moves it; the scheduler reads it.

    `arrived` is when, in seconds on the engine's clock.

    Raises `ValueError` for an empty prompt.
    """

    __slots__ = (
        "_state",
        "arrived",
        "computed_len",
        "id",
        "prompt_len",
        "restored_len",
        "tenant",
        "tokens",
    )

    def __init__(
        self, id: int, tenant: str, prompt: Sequence[int], *, arrived: float = 0.0
    ) -> None:
        if not prompt:
            raise ValueError("a prompt needs at least one token")
        self.id = id
        self.tenant = tenant
        self.arrived = arrived
        self.tokens = list(prompt)
        self.prompt_len = len(prompt)
        self.restored_len = 0
        self.computed_len = 0
        self._state = State.QUEUED

    @property
    def state(self) -> State:
        return self._state

    def move(self, to: State) -> None:
        """The only way to change the state; raises `ValueError` where the table has no such way."""
        if to not in TRANSITIONS[self._state]:
            raise ValueError(f"request {self.id}: no way from {self._state} to {to}")
        self._state = to

    @property
    def sampled(self) -> list[int]:
        """The ids sampled so far, in order; a copy."""
        return self.tokens[self.prompt_len :]

    @property
    def pending_len(self) -> int:
        """How many tokens must still be computed before the next one can be sampled."""
        return len(self.tokens) - self.computed_len

    def restore(self, length: int) -> None:
        """The KV of [0, length) came from the store; at least one prompt token stays to compute."""
        assert self._state in (State.QUEUED, State.LOADING)
        assert 0 <= length < self.prompt_len
        self.restored_len = self.computed_len = length

    def advance(self, count: int) -> None:
        """The KV of the next `count` tokens was computed."""
        assert self._state is State.DECODE or self._state is State.PREFILL
        assert 0 < count <= len(self.tokens) - self.computed_len
        self.computed_len += count

    def append(self, token: int) -> None:
        """Takes a sampled token; the whole sequence before it has KV. Ends the prefill."""
        assert self.computed_len == len(self.tokens)
        if self._state is State.PREFILL:
            self.move(State.DECODE)
        assert self._state is State.DECODE
        self.tokens.append(token)

    def cut(self, length: int) -> None:
        """Takes back what was sampled behind the first `length` tokens; the last has no KV then."""
        assert self.prompt_len < length <= len(self.tokens)
        del self.tokens[length:]
        self.computed_len = min(self.computed_len, length - 1)
