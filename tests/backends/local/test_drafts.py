"""Guesses at the next tokens: what stood behind the same tokens before."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from backends.local.drafts import Drafts

FEW = st.lists(st.integers(0, 3), max_size=60)


def test_goes_on_as_before() -> None:
    """What came behind the same run of tokens is the guess."""
    assert Drafts([1, 2, 3, 4, 5, 6, 9, 2, 3]).propose(3) == [4, 5, 6]


def test_longest_run_counts() -> None:
    """A longer run says more than a shorter one that stood there later."""
    assert Drafts([1, 2, 3, 7, 5, 2, 3, 8, 1, 2, 3]).propose(1) == [7]


def test_latest_counts() -> None:
    """Of equal runs the latest counts."""
    assert Drafts([2, 3, 7, 2, 3, 8, 2, 3]).propose(1) == [8]


def test_a_loop_goes_on() -> None:
    """A loop is guessed further than it has come."""
    assert Drafts([9, 1, 2, 1, 2, 1, 2]).propose(5) == [1, 2, 1, 2, 1]


def test_borders_of_tokens() -> None:
    """Bytes that stand across two tokens are no token."""
    shifted = [0x01000000, 0x00000001, 0x01000000, 0x00000001]
    assert Drafts([*shifted, 0x00010000, 0x00000100]).propose(1) == []
    odd = [0x02010000, 0x03020201, 7, 0x0201, 0x03020201 >> 16]
    assert Drafts(odd).propose(2) == []


def test_wrong_guesses_make_proposals_shorter() -> None:
    """After a wrong guess there are fewer, then none; guesses that came true unasked bring them
    back."""
    drafts = Drafts([1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2])
    assert drafts.propose(3) == [3, 4, 5]
    for token in (7, 1, 2):  # not 3
        drafts.push(token)
    assert drafts.propose(3) == [7, 1]
    for token in (3, 1, 2):  # not 7
        drafts.push(token)
    assert drafts.propose(3) == []  # silently 3
    drafts.push(3)
    assert drafts.propose(3) == [1]
    for token in (1, 2):
        drafts.push(token)
        drafts.propose(3)
    assert drafts.propose(3) == [3, 1, 2]


def test_nothing_known() -> None:
    """New tokens give no guess, and neither does no room for one."""
    assert Drafts([1, 2, 3, 4, 5]).propose(3) == []
    assert Drafts([]).propose(3) == []
    assert Drafts([1, 2, 1, 2]).propose(0) == []


@given(tokens=FEW, split=st.integers(0, 60), most=st.integers(0, 8))
def test_pushed_or_given(tokens: list[int], split: int, most: int) -> None:
    """Tokens may come at once or one by one; there are as many guesses as asked for, or none."""
    drafts = Drafts(tokens[:split])
    for token in tokens[split:]:
        drafts.push(token)
    guesses = drafts.propose(most)
    assert guesses == Drafts(tokens).propose(most)
    assert len(guesses) in (0, most)


@given(tokens=FEW, most=st.integers(1, 8))
def test_stood_there(tokens: list[int], most: int) -> None:
    """The newest two tokens and the guess stand somewhere, or begin a loop that stands there."""
    guesses = Drafts(tokens).propose(most)
    if guesses:
        run = [*tokens[-2:], *guesses[:1]]
        assert any(run == tokens[at : at + 3] for at in range(len(tokens) - 2))
