"""gateway.lifecycle: a turn can only do what its table says."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest

from gateway.lifecycle import TERMINAL, TRANSITIONS, IllegalTransition, Signal, TurnState, advance

DOC = (Path(__file__).parents[2] / "docs" / "wire.md").read_text(encoding="utf-8")


def test_every_pair() -> None:
    """All pairs of state and signal: those of the table advance, all others are refused."""
    for state, signal in product(TurnState, Signal):
        if (state, signal) in TRANSITIONS:
            assert advance(state, signal) is TRANSITIONS[state, signal]
        else:
            with pytest.raises(IllegalTransition) as caught:
                advance(state, signal)
            assert (caught.value.state, caught.value.signal) == (state, signal)


def test_terminal_states_are_the_ends() -> None:
    """The terminal states are exactly those that nothing leads out of."""
    assert {state for state in TurnState if not any(s is state for s, _ in TRANSITIONS)} == TERMINAL


def test_every_live_state_can_end() -> None:
    """Whatever a live turn does, it can be stopped and it can fail."""
    for state in set(TurnState) - TERMINAL:
        assert advance(state, Signal.CANCEL) is TurnState.CANCELLED
        assert advance(state, Signal.FAIL) is TurnState.FAILED


def test_doc_has_the_table() -> None:
    """docs/wire.md shows the transitions of the code."""
    lines = DOC.split("| state | start")[1].splitlines()[2:]
    shown: dict[tuple[TurnState, Signal], TurnState] = {}
    for line in lines:
        if not line.startswith("|"):
            break
        states, *cells = [cell.strip() for cell in line.strip("|").split("|")]
        for state in states.split(", "):
            for signal, cell in zip(Signal, cells, strict=True):
                if cell != "–":
                    shown[TurnState(state), signal] = TurnState(cell)
    assert shown == dict(TRANSITIONS)
