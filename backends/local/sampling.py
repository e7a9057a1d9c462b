"""Which token comes next: filters and a draw over one row of logits. Pure: numpy, no torch.

Order, as in Hugging Face's processors: repetition penalty (CTRL, arXiv 1909.05858) over every
token of the prompt and the reply, temperature, top-k, top-p (arXiv 1904.09751) on what top-k left,
min-p (arXiv 2407.01082) relative to the most likely token. Candidates are ordered by logit, then
by id, so ties change nothing between runs, and every filter leaves a leading run of that order.

One uniform number a token comes from the request's own generator, and the candidate whose share of
the cumulative distribution holds it is the token: what a request draws depends on its logits and
its seed alone. That holds on every device, because nothing is summed in floats: a token's weight
exp((logit - largest) / temperature), by the polynomial of `kernels.reference.exp`, is counted in
whole steps of 2**-30, and any order of adding them gives the same sum.

`draw` is the truth. The kernels (`kernels/sample.h`, `gpu/draws.py`) find the same tokens for all
rows of a step at once; neither sorts a vocabulary.
"""

from __future__ import annotations

import math
import secrets
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from numpy.typing import NDArray

    from backends.api import Sampling

    Floats = NDArray[np.float32]
    Ids = NDArray[np.int32]

__all__ = ["ROW", "Draw", "Sampler", "all_greedy", "draw", "draw_rows", "table"]

UNIT = 1 << 30
"""The largest weight; 2**33 of them would fit in 63 bits."""

LEAST = -21.0
"""What is so far below the largest logit, temperature applied, weighs less than 2**-30: nothing."""

ROW = np.dtype(
    [
        ("uniform", np.float64),
        ("top_p", np.float64),
        ("temperature", np.float32),
        ("penalty", np.float32),
        ("floor", np.float32),
        ("top_k", np.int32),
        ("begin", np.int32),  # of its ids: first the seen ones, then the masked
        ("masked", np.int32),
        ("end", np.int32),
        ("wanted", np.int32),
    ]
)
"""A `Draw` as kernels read it; 48 bytes. Mirrored in kernels/sample.h and gpu/draws.py."""


class Settings(NamedTuple):
    """A request's `Sampling` in the numbers of a draw; floats that are used as float32 are such.

    `floor` is min-p's: the natural logarithm, so that a filter compares logits, whose order no
    rounding of an exponential can turn around.
    """

    top_p: float
    temperature: float
    penalty: float
    floor: float
    top_k: int

    @classmethod
    def of(cls, sampling: Sampling) -> Settings:
        return cls(
            sampling.top_p,
            float(np.float32(sampling.temperature)),
            float(np.float32(sampling.repetition_penalty)),
            float(np.float32(math.log(sampling.min_p))) if sampling.min_p else -math.inf,
            min(sampling.top_k, 2**31 - 1),
        )


class Draw(NamedTuple):
    """All that a draw depends on besides the logits.

    `seen`: the ids that the penalty counts, each once. `masked`: ids that are not drawn.
    """

    settings: Settings
    uniform: float
    seen: Ids
    masked: Ids

    @property
    def is_greedy(self) -> bool:
        """Whether the token is that of the largest logit as it is."""
        return self.settings.temperature == 0.0 and not len(self.seen) and not len(self.masked)


_NONE = np.empty(0, np.int32)


class Sampler:
    """What one request draws with: its settings, its generator and the ids it has seen.

    `prompt` are the ids that the repetition penalty counts from the start; `not_first` are never
    drawn as the first token.
    """

    def __init__(
        self, sampling: Sampling, prompt: Iterable[int], not_first: Collection[int] = ()
    ) -> None:
        self._settings = Settings.of(sampling)
        seed = sampling.seed
        self._generator = np.random.Generator(
            np.random.PCG64(secrets.randbits(63) if seed is None else seed)
        )
        self._uniforms: deque[float] = deque()  # drawn ahead for guesses
        self._seen = _Seen(prompt) if self._settings.penalty != 1.0 else None
        self._not_first = np.array(sorted(not_first), np.int32)
        self._greedy = [Draw(self._settings, 0.0, _NONE, _NONE)]

    def ask(self, guesses: Sequence[int] = ()) -> list[Draw]:
        """The next draw, and the one behind each guess should all up to it be right.

        They hold until the next `ask` or `take`.
        """
        if self._seen is None and self._settings.temperature == 0.0 and not len(self._not_first):
            return self._greedy * (1 + len(guesses))
        count = 1 + len(guesses)
        while len(self._uniforms) < count:
            self._uniforms.append(self._generator.random())
        seen = [_NONE] * count if self._seen is None else self._seen.behind(guesses)
        masks = [self._not_first, *[_NONE] * len(guesses)]
        return [
            Draw(self._settings, *rest)
            for rest in zip(self._uniforms, seen, masks, strict=False)  # may be further ahead
        ]

    def take(self, token: int) -> None:
        """The next draw gave `token`."""
        if self._uniforms:
            self._uniforms.popleft()
        if self._seen is not None:
            self._seen.add(token)
        if len(self._not_first):
            self._not_first = _NONE

    def draw(self, logits: Floats) -> int:
        """Asks and takes in one, for logits [V] float32, which stay as they are.

        Raises `ValueError` when no token has a finite logit (broken weights).
        """
        token = draw(logits.copy(), self.ask()[0])
        if token is None:
            raise ValueError("the model gave no finite logit")
        self.take(token)
        return token


class _Seen:
    """Ids in the order they were first seen, each once."""

    def __init__(self, ids: Iterable[int]) -> None:
        first = list(dict.fromkeys(ids))
        self._known = set(first)
        self._count = len(first)
        self._ids = np.empty(self._count + 256, np.int32)
        self._ids[: self._count] = first

    def add(self, id: int) -> None:
        if id not in self._known:
            self._known.add(id)
            self._put(self._count, id)
            self._count += 1

    def behind(self, guesses: Sequence[int]) -> list[Ids]:
        """The ids now, and behind each guess; guesses are written where the next ids will be."""
        counts, new = [self._count], set[int]()
        for guess in guesses:
            if guess not in self._known and guess not in new:
                new.add(guess)
                self._put(counts[-1], guess)
            counts.append(self._count + len(new))
        return [self._ids[:count] for count in counts]

    def _put(self, at: int, id: int) -> None:
        if at == len(self._ids):
            self._ids = np.concatenate([self._ids, np.empty_like(self._ids)])
        self._ids[at] = id


def all_greedy(draws: Sequence[Draw | None]) -> bool:
    """Whether every token that is asked for is that of a row's largest logit."""
    return all(ask is None or ask.is_greedy for ask in draws)


def draw_rows(logits: Floats, draws: Sequence[Draw | None]) -> list[int | None]:
    """`draw` for rows of logits [W, V]; None where nothing is asked. Uses the logits up."""
    return [ask and draw(row, ask) for row, ask in zip(logits, draws, strict=True)]


def draw(row: Floats, ask: Draw) -> int | None:
    """The token of logits [V] float32, which are used up; None when the largest is not finite."""
    settings = ask.settings
    values = row[ask.seen]
    penalty = np.float32(settings.penalty)
    with np.errstate(over="ignore", invalid="ignore"):
        row[ask.seen] = np.where(values > 0, values / penalty, values * penalty)
        row[ask.masked] = -np.inf
        best = int(row.argmax())  # NaN counts as the largest
        if not math.isfinite(row[best]):
            return None
        if settings.temperature == 0.0:
            return best
        scaled = (row - row[best]) / np.float32(settings.temperature)
    ids = np.flatnonzero(scaled >= LEAST)
    if settings.top_k:
        ids = _likeliest(row, ids, settings.top_k)
    weights = _weights(scaled[ids])
    total = int(weights.sum())
    ids, weights = (each[scaled[ids] >= settings.floor] for each in (ids, weights))
    found = _Order(row[ids], scaled[ids], weights)
    kept = int(weights.sum())
    if settings.top_p < 1.0:
        _, kept = found.reaching(min(math.ceil(settings.top_p * total), kept))
    # The product may be rounded up to the whole.
    place, _ = found.reaching(min(int(ask.uniform * kept), kept - 1) + 1)
    return int(ids[place])


def _likeliest(row: Floats, ids: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """The first `count` of ascending ids in order, or all."""
    if count < len(ids):
        ids = ids[row[ids] >= np.partition(row[ids], -count)[-count]]
    order = np.argsort(-row[ids], kind="stable")
    return ids[order][:count]


class _Order(NamedTuple):
    """Candidates, among equal logits by ascending id."""

    logits: Floats
    scaled: Floats
    weights: NDArray[np.int64]

    def reaching(self, mass: int) -> tuple[int, int]:
        """Where, in order, the sum of weights reaches `mass`, no more than all, and that sum."""
        depth = -1.0
        while self.weights[near := self.scaled >= depth].sum() < mass:
            depth *= 2
        places = np.flatnonzero(near)
        places = places[np.argsort(-self.logits[near], kind="stable")]
        sums = self.weights[places].cumsum()
        at = sums.searchsorted(mass)
        return int(places[at]), int(sums[at])


def _weights(scaled: Floats) -> NDArray[np.int64]:
    """exp of numbers from `LEAST` to 0 by `reference.exp`, in whole steps of 2**-30, cut off."""
    n = np.rint(scaled * np.float32(1.44269504))
    r = (scaled - n * np.float32(0.693359375)) - n * np.float32(-2.12194440e-4)
    y = r * np.float32(1 / 720) + np.float32(1 / 120)
    for coefficient in (1 / 24, 1 / 6, 0.5, 1.0, 1.0):
        y = y * r + np.float32(coefficient)
    power = ((n.astype(np.int32) + 127) << 23).view(np.float32)
    whole: NDArray[np.int64] = (y * power * np.float32(UNIT)).astype(np.int64)
    return whole


def table(draws: Sequence[Draw | None]) -> tuple[NDArray[np.void], Ids]:
    """The draws for kernels: a `ROW` each [W], and the ids that these point into."""
    rows, ids, end = [], [], 0
    for ask in draws:
        if ask is None:
            rows.append((0.0, 1.0, 1.0, 1.0, 0.0, 0, end, end, end, 0))
            continue
        begin, masked = end, end + len(ask.seen)
        end = masked + len(ask.masked)
        rows.append((ask.uniform, *ask.settings, begin, masked, end, 1))
        if end > begin:
            ids += [ask.seen, ask.masked]
    return np.array(rows, ROW), np.concatenate(ids) if ids else _NONE
