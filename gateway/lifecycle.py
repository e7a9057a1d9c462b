"""The life of a turn: its states, what happens to it, and one table of what leads where. Pure."""

from __future__ import annotations

from enum import Enum
from types import MappingProxyType
from typing import TYPE_CHECKING

from gateway.errors import GatewayError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["TERMINAL", "TRANSITIONS", "IllegalTransition", "Signal", "TurnState", "advance"]


class TurnState(Enum):
    """Where a turn is; the last three are final."""

    ACCEPTED = "accepted"
    STARTED = "started"
    STREAMING = "streaming"
    DONE = "done"
    CANCELLED = "cancelled"
    FAILED = "failed"


class Signal(Enum):
    """What happens to a turn."""

    START = "start"
    TEXT = "text"
    FINISH = "finish"
    CANCEL = "cancel"
    FAIL = "fail"


TRANSITIONS: Mapping[tuple[TurnState, Signal], TurnState] = MappingProxyType(
    {
        (TurnState.ACCEPTED, Signal.START): TurnState.STARTED,
        (TurnState.ACCEPTED, Signal.CANCEL): TurnState.CANCELLED,
        (TurnState.ACCEPTED, Signal.FAIL): TurnState.FAILED,
        (TurnState.STARTED, Signal.TEXT): TurnState.STREAMING,
        (TurnState.STARTED, Signal.FINISH): TurnState.DONE,
        (TurnState.STARTED, Signal.CANCEL): TurnState.CANCELLED,
        (TurnState.STARTED, Signal.FAIL): TurnState.FAILED,
        (TurnState.STREAMING, Signal.TEXT): TurnState.STREAMING,
        (TurnState.STREAMING, Signal.FINISH): TurnState.DONE,
        (TurnState.STREAMING, Signal.CANCEL): TurnState.CANCELLED,
        (TurnState.STREAMING, Signal.FAIL): TurnState.FAILED,
    }
)

TERMINAL = frozenset({TurnState.DONE, TurnState.CANCELLED, TurnState.FAILED})


class IllegalTransition(GatewayError):
    """A defect of ours: this cannot happen to a turn in this state."""

    def __init__(self, state: TurnState, signal: Signal) -> None:
        super().__init__(f"a turn that is {state.value} cannot {signal.value}")
        self.state = state
        self.signal = signal


def advance(state: TurnState, signal: Signal) -> TurnState:
    """The state after `signal`. Raises `IllegalTransition`."""
    try:
        return TRANSITIONS[state, signal]
    except KeyError:
        raise IllegalTransition(state, signal) from None
