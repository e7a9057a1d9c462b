"""Sampling equals a naive reference that sorts the whole vocabulary."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from backends.api import Sampling
from backends.local.kernels import reference
from backends.local.sampling import LEAST, ROW, UNIT, Draw, Sampler, draw, draw_rows, table
from tests.backends.local.drawing import ask, cases

Row = NDArray[np.float32]


def row(values: list[float]) -> Row:
    return np.array(values, dtype=np.float32)


def naive(logits: Row, asked: Draw) -> int | None:
    """The definition, word by word: every token with its weight, sorted."""
    setting = asked.settings
    raw = torch.from_numpy(logits.copy())
    for i in asked.seen:
        penalty = torch.tensor(setting.penalty)
        raw[i] = raw[i] / penalty if raw[i] > 0 else raw[i] * penalty
    raw[asked.masked.tolist()] = -torch.inf
    if not raw.max().isfinite():
        return None
    order = sorted(range(len(raw)), key=lambda i: (-float(raw[i]), i))
    if setting.temperature == 0:
        return order[0]
    scaled = (raw - raw.max()) / torch.tensor(setting.temperature)
    weights = (reference.exp(scaled) * UNIT).long().tolist()
    if setting.top_k:
        order = order[: setting.top_k]
    needed, mass, kept = setting.top_p * sum(weights[i] for i in order), 0, []
    for i in order:
        if (setting.top_p == 1 or mass < needed) and scaled[i] >= setting.floor:
            kept.append(i)
        mass += weights[i]
    at = int(asked.uniform * sum(weights[i] for i in kept))
    for i in kept:
        at -= weights[i]
        if at < 0:
            return i
    return next(i for i in reversed(kept) if weights[i])


@settings(max_examples=300, deadline=None)
@given(case=cases(sizes=(3, 64, 300, 900)))
def test_equals_the_naive_sort(case: tuple[Row, list[Draw | None]]) -> None:
    """The same token in every corner of the settings; nothing is drawn from a broken row."""
    logits, draws = case
    expected = [asked and naive(each, asked) for each, asked in zip(logits, draws, strict=True)]
    assert draw_rows(logits.copy(), draws) == expected


def exact(logits: Row, sampling: Sampling) -> NDArray[np.float64]:
    """The probabilities [V] in float64, as the filters are usually written."""
    scaled = logits.astype(np.float64) / sampling.temperature
    share = np.exp(scaled - scaled.max())
    order = np.argsort(-share, kind="stable")
    if sampling.top_k:
        share[order[sampling.top_k :]] = 0
    share /= share.sum()
    share[order[np.searchsorted(share[order].cumsum(), sampling.top_p) + 1 :]] = 0
    share[share < sampling.min_p * share.max()] = 0
    return np.asarray(share / share.sum())


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=0.75, top_p=0.9, min_p=0.05),
        Sampling(temperature=1.3, top_p=1.0),
        Sampling(temperature=1.0, top_p=0.8),
        Sampling(temperature=0.9, top_k=12, top_p=0.95),
    ],
    ids=["profile", "plain", "top-p", "top-k"],
)
def test_draws_follow_the_probabilities(sampling: Sampling) -> None:
    """Chi-square against a float64 softmax; none beyond it, and about one seed in 10,000 fails."""
    logits = np.random.default_rng(5).standard_normal(60).astype(np.float32) * 2
    shares = exact(logits, sampling)
    sampler = Sampler(replace(sampling, seed=11), [])
    count = 20_000
    found = Counter(sampler.draw(logits) for _ in range(count))
    live = shares * count > 5
    assert set(found) <= set(np.flatnonzero(shares).tolist())
    seen = np.array([found[i] for i in range(len(logits))])
    chi = ((seen - shares * count)[live] ** 2 / (shares * count)[live]).sum()
    degrees = live.sum() - 1
    assert chi < degrees + 3.8 * math.sqrt(2 * degrees) + 8


@given(st.lists(st.floats(LEAST, 0, width=32), min_size=1, max_size=50))
def test_weights_are_the_reference_s_exponential(scaled: list[float]) -> None:
    """In whole steps of 2**-30, and within a millionth of mathematics."""
    from backends.local.sampling import _weights

    found = _weights(row(scaled))
    assert found.tolist() == (reference.exp(torch.tensor(scaled)) * UNIT).long().tolist()
    assert found.tolist() == pytest.approx([UNIT * math.exp(x) for x in scaled], rel=1e-6, abs=1)


def test_what_is_far_below_weighs_nothing() -> None:
    """So nothing below the limit needs to be looked at."""
    assert reference.exp(torch.tensor([np.nextafter(row([LEAST])[0], row([-99.0])[0])])) < 2**-30


def test_greedy() -> None:
    """Temperature 0 takes the likeliest token, and the mask counts for the first one alone."""
    logits = row([1.0, 3.0, 2.0])
    sampler = Sampler(Sampling(temperature=0.0), [], [1])
    assert [sampler.draw(logits) for _ in range(3)] == [2, 1, 1]
    assert logits.tolist() == [1.0, 3.0, 2.0]


def test_repetition_penalty_counts_the_reply() -> None:
    """A token that was drawn is penalised from then on, a negative logit too."""
    sampler = Sampler(Sampling(temperature=0.0, repetition_penalty=2.0), [])
    logits = row([1.0, 1.5, -9.0])
    assert [sampler.draw(logits) for _ in range(2)] == [1, 0]
    sampler = Sampler(Sampling(temperature=0.0, repetition_penalty=2.0), [0])
    assert sampler.draw(row([-1.0, -1.5])) == 1


def test_seed_repeats() -> None:
    """The same seed gives the same draws; without a seed they differ."""
    logits = row([0.0] * 5000)
    sampling = Sampling(temperature=1.0, top_p=1.0, seed=7)

    def run(sampling: Sampling) -> list[int]:
        sampler = Sampler(sampling, [])
        return [sampler.draw(logits) for _ in range(6)]

    assert run(sampling) == run(sampling)
    assert run(Sampling(temperature=1.0)) != run(Sampling(temperature=1.0))


@settings(max_examples=60, deadline=None)
@given(
    guesses=st.lists(st.integers(0, 5), max_size=3),
    penalty=st.sampled_from([1.0, 1.4]),
    steps=st.integers(1, 300),
    seed=st.integers(0, 99),
)
def test_draws_behind_guesses(guesses: list[int], penalty: float, steps: int, seed: int) -> None:
    """Asked for ahead, they are those that follow when the guesses are right, and no number of the
    generator is lost when they are wrong."""
    sampling = Sampling(1.0, top_p=1.0, repetition_penalty=penalty, seed=seed)
    ahead, plain = (Sampler(sampling, [1, 2, 1], [3]) for _ in range(2))
    logits = np.random.default_rng(seed).standard_normal(400).astype(np.float32)
    logits[:6] += 5
    said: list[int] = []
    while len(said) < steps:
        tokens = draw_rows(np.tile(logits, (1 + len(guesses), 1)), ahead.ask(guesses))
        for token, guess in zip(tokens, [*guesses, None], strict=True):
            assert token is not None
            ahead.take(token)
            said.append(token)
            if token != guess:
                break
    assert said == [plain.draw(logits) for _ in said]


def test_ties_go_by_id() -> None:
    """Among equal logits top-k keeps the smallest ids."""
    found = {
        draw(row([0.0] * 9), ask(Sampling(temperature=1.0, top_k=3), uniform))
        for uniform in np.arange(0, 1, 0.05)
    }
    assert found == {0, 1, 2}


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_broken_logits(bad: float) -> None:
    """Logits without a finite best are a clear error."""
    with pytest.raises(ValueError, match="no finite logit"):
        Sampler(Sampling(), []).draw(row([bad] * 4))


def test_prompt_is_not_counted_without_penalty() -> None:
    """A penalty of 1 changes nothing, however long the prompt was."""
    sampler = Sampler(Sampling(temperature=0.0), list(range(3)))
    assert sampler.draw(row([1.0, 3.0, 2.0])) == 1
    assert sampler.ask()[0].is_greedy


def test_the_table_for_kernels() -> None:
    """A row for each draw and the ids of all, one behind the other; the size that C++ reads."""
    assert ROW.itemsize == 48
    sampling = Sampling(0.5, 7, 0.9, 0.1, 1.5)
    rows, ids = table([ask(sampling, 0.25, (5, 6), (1,)), None, ask(sampling, 0.5, (), (4,))])
    assert ids.tolist() == [5, 6, 1, 4]
    assert rows["begin"].tolist() == [0, 3, 3]
    assert rows["masked"].tolist() == [2, 3, 3]
    assert rows["end"].tolist() == [3, 3, 4]
    assert rows["wanted"].tolist() == [1, 0, 1]
    assert rows[0].tolist()[:6] == (0.25, 0.9, 0.5, 1.5, pytest.approx(math.log(0.1)), 7)
