"""Guesses at the next tokens, from what stands further up: prompt lookup. Pure.

A step reads every weight whether it computes one row or four, so rows to spare are filled with
drafts, and the model's own logits say which of them were right ("Prompt Lookup Decoding", Saxena,
2023; verification as in Leviathan et al., 2023, with the sampler's own draw in the place of their
acceptance rule). A wrong draft costs its row; no token changes. So that few are wrong, every guess
is kept and compared with what came, also those that nobody verified: wrong ones make the next
proposals shorter, right ones longer again.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Drafts"]

_RUNS = (4, 3, 2)
"""Lengths of the runs of tokens that are looked for, the longest first."""

_FULL_TRUST = 8
"""The longest proposal. A wrong guess leaves a fourth of it, a right one doubles it."""


class Drafts:
    """Follows one sequence and says how it went on where its newest tokens stood before."""

    def __init__(self, tokens: Iterable[int]) -> None:
        self._tokens = array("I", tokens)
        self._open: list[int] = []  # guesses at the next tokens, proposed or not
        self._trust = _FULL_TRUST

    def __len__(self) -> int:
        return len(self._tokens)

    def push(self, token: int) -> None:
        """The sequence goes on with `token`."""
        self._tokens.append(token)
        if self._open:
            if self._open.pop(0) == token:
                self._trust = min(2 * self._trust + 1, _FULL_TRUST)
            else:
                self._open = []
                self._trust //= 4

    def propose(self, most: int) -> list[int]:
        """Up to `most` tokens that may come next: as many as earlier guesses were right to make,
        or none where nothing is known.

        What came behind is repeated where it ends before that, as in a loop.
        """
        tokens = self._tokens
        self._open = []
        for run in _RUNS:
            begin = self._behind(run)
            if begin is not None:
                period = len(tokens) - begin
                self._open = [tokens[begin + at % period] for at in range(most)]
                break
        return self._open[: self._trust]

    def _behind(self, run: int) -> int | None:
        """Where the tokens behind the latest earlier place of the newest `run` tokens begin."""
        if len(self._tokens) < run:
            return None
        # Bytes are searched at the speed of C and need no index beforehand.
        width, held = self._tokens.itemsize, self._tokens.tobytes()
        newest = held[-run * width :]
        at = held.rfind(newest, 0, len(held) - width)
        while at > 0 and at % width:  # across the borders of tokens
            at = held.rfind(newest, 0, at + len(newest) - 1)
        return at // width + run if at >= 0 else None
