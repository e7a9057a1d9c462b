"""A request moves only along its table, and its lengths stay ordered."""

from __future__ import annotations

import itertools

import pytest

from backends.local.request import TRANSITIONS, Request, State


def at(state: State) -> Request:
    """A request of three prompt tokens, brought to `state`."""
    request = Request(1, "t", [5, 6, 7])
    if state is State.LOADING:
        request.move(State.LOADING)
    if state in (State.PREFILL, State.DECODE, State.ENDING):
        request.move(State.PREFILL)
    if state in (State.DECODE, State.ENDING):
        request.advance(3)
        request.append(9)
    if state is State.ENDING:
        request.move(State.ENDING)
    if state is State.ENDED:
        request.move(State.ENDED)
    return request


@pytest.mark.parametrize(("start", "to"), list(itertools.product(State, State)))
def test_every_pair(start: State, to: State) -> None:
    """Each pair of states is a way exactly when the table says so."""
    request = at(start)
    if to in TRANSITIONS[start]:
        request.move(to)
        assert request.state is to
    else:
        with pytest.raises(ValueError, match="no way from"):
            request.move(to)
        assert request.state is start


def test_lengths() -> None:
    """Restore, chunks of prefill and decode add up to the whole sequence."""
    request = Request(1, "t", [5, 6, 7, 8])
    request.restore(2)
    request.move(State.PREFILL)
    assert (request.restored_len, request.computed_len, request.pending_len) == (2, 2, 2)
    request.advance(1)
    request.advance(1)
    request.append(9)
    assert request.state is State.DECODE
    assert request.pending_len == 1
    request.advance(1)
    request.append(10)
    assert request.sampled == [9, 10]
    assert request.computed_len == request.prompt_len + 1


def test_cut() -> None:
    """What is cut off is as if it had never been sampled: the last token has no KV."""
    request = at(State.DECODE)
    for token in (10, 11, 12):
        request.advance(1)
        request.append(token)
    request.cut(5)
    assert request.tokens == [5, 6, 7, 9, 10]
    assert request.pending_len == 1
    request.cut(5)
    assert (request.sampled, request.computed_len) == ([9, 10], 4)


def test_empty_prompt() -> None:
    """An empty prompt is refused."""
    with pytest.raises(ValueError, match="at least one token"):
        Request(1, "t", [])


def test_restore_leaves_one() -> None:
    """A restore that would leave no prompt token to compute is a defect."""
    with pytest.raises(AssertionError):
        Request(1, "t", [5, 6]).restore(2)
