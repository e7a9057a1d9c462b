"""Guesses at the next tokens, from what stands further up: prompt lookup. Pure.

A step reads every weight whether it computes one row or four, so rows to spare are filled with
drafts, and the model's own logits say which of them were right ("Prompt Lookup Decoding", Saxena,
2023; verification as in Leviathan et al., 2023, with the sampler's own draw in the place of their
acceptance rule). A wrong draft costs its row; no token changes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Drafts"]

_ORDERS = (4, 3, 2)
"""Lengths of the runs of tokens that are looked for, the longest first."""


class Drafts:
    """Follows one sequence and says how it went on where its newest tokens stood before."""

    def __init__(self, tokens: Iterable[int]) -> None:
        self._tokens: list[int] = []
        # By length of run: where the tokens behind its latest occurrence begin. The run at the
        # very end is not in it: nothing stands behind.
        self._behind: dict[int, dict[tuple[int, ...], int]] = {order: {} for order in _ORDERS}
        for token in tokens:
            self.push(token)

    def push(self, token: int) -> None:
        """The sequence goes on with `token`."""
        tokens, end = self._tokens, len(self._tokens)
        for order in _ORDERS:
            if end >= order:
                self._behind[order][tuple(tokens[end - order :])] = end
        tokens.append(token)

    def propose(self, most: int) -> list[int]:
        """Up to `most` tokens that may come next: all of them, or none where nothing is known.

        What came behind is repeated where it ends before that, as in a loop.
        """
        tokens = self._tokens
        for order in _ORDERS:
            if len(tokens) < order:
                continue
            begin = self._behind[order].get(tuple(tokens[-order:]))
            if begin is not None:
                period = len(tokens) - begin
                return [tokens[begin + at % period] for at in range(most)]
        return []
