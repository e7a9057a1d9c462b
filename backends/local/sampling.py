"""Which token comes next: filters and a draw over one row of logits. Pure: numpy, no torch.

Order, as in Hugging Face's processors: repetition penalty (CTRL, arXiv 1909.05858) over every
token of the prompt and the reply, temperature, top-k, top-p (arXiv 1904.09751) on what top-k left,
min-p (arXiv 2407.01082) relative to the most likely token. Candidates are ordered by logit, then
by id, so ties change nothing between runs.

A row can have 262,144 entries and is not sorted: the likeliest few are picked out, and more only
when top-p asks for them. One uniform number a token is drawn from the request's own generator, and
the candidate whose share of the cumulative distribution holds it is the token: what a request draws
depends on its logits and its seed alone.

numpy because a row is too small to share out: each torch kernel would wake every thread and wait
for the slowest, which costs milliseconds on a busy machine.
"""

from __future__ import annotations

import math
import secrets
from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from numpy.typing import NDArray

    from backends.api import Sampling

    Floats = NDArray[np.float32]
    Ids = NDArray[np.int64]

__all__ = ["Row", "Sampler"]

FIRST_LOOK = 256
"""Candidates of the first look for top-p; sixteen times as many in each further one."""

_COLUMN_LEN = 64

MOST_FETCHED = 128
"""The largest top-k for which the likeliest entries of a row are fetched instead of all."""


class Row(Protocol):
    """One row of logits [V] that lies elsewhere: what is asked of it is fetched."""

    def best(self) -> tuple[int, float]:
        """The lowest id of the largest logit, and that logit; not finite where one is NaN."""
        ...

    def top(self, count: int) -> tuple[Ids, Floats]:
        """At least `count` largest logits, or all: their ids, ascending, and they."""
        ...

    def values(self) -> Floats:
        """All of them."""
        ...


class Sampler:
    """Draws the tokens of one request.

    `prompt` are the ids that the repetition penalty counts from the start; `not_first` are never
    drawn as the first token.
    """

    def __init__(
        self, sampling: Sampling, prompt: Sequence[int], not_first: Collection[int] = ()
    ) -> None:
        self._sampling = sampling
        seed = sampling.seed
        self._generator = np.random.Generator(
            np.random.PCG64(secrets.randbits(63) if seed is None else seed)
        )
        self._seen = set(prompt) if sampling.repetition_penalty != 1.0 else None
        self._not_first: Ids | None = (
            np.array(sorted(not_first), dtype=np.int64) if not_first else None
        )

    def draw_from(self, row: Row) -> int:
        """What `draw` gives for the row's values, fetching no more of them than it takes."""
        sampling = self._sampling
        if self._seen is not None or self._not_first is not None:
            return self.draw(row.values())
        if sampling.temperature == 0.0:
            token, logit = row.best()
            if not math.isfinite(logit):
                raise ValueError("the model gave no finite logit")
            return token
        if 0 < sampling.top_k <= MOST_FETCHED:
            ids, values = row.top(MOST_FETCHED + 1)
            best = values.max()
            if math.isfinite(best) and self._holds_top(values, best):
                return int(ids[self._pick(values, best)])
        return self.draw(row.values())

    def _holds_top(self, values: Floats, best: np.float32) -> bool:
        """Whether everything outside these largest values is below the k-th, temperature applied.

        The temperature may round two logits to one, and among equals the lowest id counts.
        """
        if len(values) <= MOST_FETCHED:
            return True  # the whole row
        scaled = (values - best) / np.float32(self._sampling.temperature)
        kth = np.partition(scaled, -self._sampling.top_k)[-self._sampling.top_k]
        return bool(scaled.min() < kth)

    def draw(self, logits: Floats) -> int:
        """The next token of logits [V] float32; mutates the generator, never `logits`.

        Raises `ValueError` when no token has a finite logit (broken weights).
        """
        row = self._adjusted(logits)
        best = int(row.argmax())  # NaN counts as the largest
        if not math.isfinite(row[best]):
            raise ValueError("the model gave no finite logit")
        token = best if self._sampling.temperature == 0.0 else self._pick(row, row[best])
        self._not_first = None
        if self._seen is not None:
            self._seen.add(token)
        return token

    def _adjusted(self, logits: Floats) -> Floats:
        """The row with the repetition penalty and the mask of the first token."""
        if self._seen is None and self._not_first is None:
            return logits
        row = logits.copy()
        if self._seen is not None:
            penalty = np.float32(self._sampling.repetition_penalty)
            seen = np.fromiter(self._seen, dtype=np.int64, count=len(self._seen))
            values = row[seen]
            row[seen] = np.where(values > 0, values / penalty, values * penalty)
        if self._not_first is not None:
            row[self._not_first] = -np.inf
        return row

    def _pick(self, row: Floats, best: np.float32) -> int:
        ids, weights = self._candidates((row - best) / np.float32(self._sampling.temperature))
        cumulative = weights.cumsum(dtype=np.float64)
        at = int(cumulative.searchsorted(self._generator.random() * cumulative[-1], side="right"))
        return int(ids[min(at, len(ids) - 1)])

    def _candidates(self, row: Floats) -> tuple[Ids, Floats]:
        """The ids [C] that the filters leave, and their weights [C], not normalised.

        `row` is scaled by the temperature and its maximum is 0.
        """
        sampling = self._sampling
        if sampling.top_k:
            ids = _likeliest(row, sampling.top_k)[: sampling.top_k]
            weights = np.exp(row[ids])
            if sampling.top_p < 1.0:
                ids = ids[: _nucleus_len(weights, float(weights.sum()), sampling.top_p)]
        elif sampling.top_p < 1.0:
            ids = _nucleus(row, sampling.top_p)
        else:
            ids = np.arange(len(row))
        weights = np.exp(row[ids])
        if sampling.min_p:
            held = weights >= sampling.min_p
            ids, weights = ids[held], weights[held]
        return ids, weights


def _likeliest(row: Floats, count: int) -> Ids:
    """At least the `count` likeliest ids, and all that tie with the last, by logit, then by id."""
    every = count >= len(row)
    ids = np.arange(len(row)) if every else np.flatnonzero(row >= _floor(row, count))
    return ids[np.argsort(-row[ids], kind="stable")]


def _floor(row: Floats, count: int) -> np.float32:
    """A logit that `count` entries reach, and not many more.

    Of `count` columns each has an entry that reaches the `count`-th largest of the columns' best,
    so that is no higher than the `count`-th largest of all, and needs one look at each.
    """
    columns = len(row) // _COLUMN_LEN
    if columns < 4 * count:
        return np.float32(np.partition(row, -count)[-count])
    best = row[: columns * _COLUMN_LEN].reshape(_COLUMN_LEN, columns).max(axis=0)
    return np.float32(np.partition(best, -count)[-count])


def _nucleus(row: Floats, top_p: float) -> Ids:
    """The shortest run of likeliest ids whose probability reaches `top_p`."""
    total = float(np.exp(row).sum(dtype=np.float64))
    count = FIRST_LOOK
    while True:
        ids = _likeliest(row, count)
        length = _nucleus_len(np.exp(row[ids]), total, top_p)
        if length <= len(ids) or len(ids) == len(row):
            return ids[:length]
        count *= 16


def _nucleus_len(weights: Floats, total: float, top_p: float) -> int:
    """How many leading weights reach `top_p` of `total`; one more than there are if none do."""
    return int((weights.cumsum(dtype=np.float64) < top_p * total).sum()) + 1
