"""Sampling equals a naive reference that sorts the whole vocabulary."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from backends.api import Sampling
from backends.local.sampling import FIRST_LOOK, Sampler, _likeliest

Row = NDArray[np.float32]


def row(values: list[float]) -> Row:
    return np.array(values, dtype=np.float32)


def naive_distribution(
    logits: list[float], sampling: Sampling, seen: set[int], banned: set[int]
) -> dict[int, float]:
    """Probability by id, by full sort, in plain Python."""
    raw = list(logits)
    for i in seen:
        p = sampling.repetition_penalty
        raw[i] = raw[i] / p if raw[i] > 0 else raw[i] * p
    scaled = {i: x / sampling.temperature for i, x in enumerate(raw) if i not in banned}
    order = sorted(scaled, key=lambda i: (-scaled[i], i))
    if sampling.top_k:
        order = order[: sampling.top_k]
    top = max(scaled.values())
    weights = {i: math.exp(scaled[i] - top) for i in order}
    total = sum(weights.values())
    if sampling.top_p < 1:
        kept: list[int] = []
        mass = 0.0
        for i in order:
            kept.append(i)
            mass += weights[i] / total
            if mass >= sampling.top_p:
                break
        order = kept
    order = [i for i in order if weights[i] >= sampling.min_p]
    total = sum(weights[i] for i in order)
    return {i: weights[i] / total for i in order}


def draws(logits: Row, sampling: Sampling, count: int) -> Counter[int]:
    """Independent first draws of `count` seeds."""
    found: Counter[int] = Counter()
    for seed in range(count):
        found[Sampler(replace(sampling, seed=seed), []).draw(logits)] += 1
    return found


@settings(max_examples=120, deadline=None)
@given(
    seed=st.integers(0, 2**20),
    vocab=st.integers(3, 700),
    scale=st.sampled_from([0.0, 0.1, 1.0, 6.0]),
    temperature=st.sampled_from([0.3, 1.0, 2.5]),
    top_k=st.sampled_from([0, 1, 2, 40]),
    top_p=st.sampled_from([0.1, 0.5, 0.93, 1.0]),
    min_p=st.sampled_from([0.0, 0.05, 0.5]),
    penalty=st.sampled_from([1.0, 1.3, 0.8]),
)
def test_equals_reference(
    seed: int,
    vocab: int,
    scale: float,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    penalty: float,
) -> None:
    """The candidates and their probabilities are those of the naive full sort."""
    logits = np.random.default_rng(seed).standard_normal(vocab, dtype=np.float32) * scale
    logits = logits.astype(np.float32)
    sampling = Sampling(temperature, top_k, top_p, min_p, penalty, seed=seed)
    seen, banned = {0, 2}, {1}
    reference = naive_distribution(logits.tolist(), sampling, seen, banned)
    sampler = Sampler(sampling, sorted(seen), banned)
    adjusted = sampler._adjusted(logits)
    ids, weights = sampler._candidates((adjusted - adjusted.max()) / np.float32(temperature))
    got = dict(zip(ids.tolist(), (weights / weights.sum()).tolist(), strict=True))
    # Below this float32 may hold nothing.
    live = {i: p for i, p in got.items() if p > 1e-37}
    reference = {i: p for i, p in reference.items() if p > 1e-37}
    # A set may differ by one candidate where a float sum lands on the border itself.
    assert len(live.keys() ^ reference.keys()) <= 1
    if live.keys() == reference.keys():
        assert live == pytest.approx(reference, rel=1e-3)
    token = sampler.draw(logits)
    assert token in live
    assert token != 1


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


def test_distribution() -> None:
    """Draws follow the probabilities (chi-square, 3 degrees, p about 1e-4)."""
    logits = row([0.0, 1.0, 2.0, -1.0])
    sampling = Sampling(temperature=1.0, top_p=1.0)
    count = 2000
    found = draws(logits, sampling, count)
    expected = naive_distribution(logits.tolist(), sampling, set(), set())
    chi = sum((found[i] - count * p) ** 2 / (count * p) for i, p in expected.items())
    assert chi < 21.1


def test_nucleus_beyond_first_look() -> None:
    """top-p is exact when it needs more candidates than the first look takes."""
    vocab = FIRST_LOOK * 8
    logits = -np.arange(vocab, dtype=np.float32) * np.float32(1e-4)
    sampling = Sampling(temperature=1.0, top_p=0.9)
    ids, _ = Sampler(sampling, [])._candidates(logits)
    expected = naive_distribution(logits.tolist(), sampling, set(), set())
    assert abs(len(ids) - len(expected)) <= 1
    assert ids.tolist() == list(range(len(ids)))


def test_ties_go_by_id() -> None:
    """Among equal logits top-k keeps the smallest ids."""
    ids, _ = Sampler(Sampling(temperature=1.0, top_k=3), [])._candidates(row([0.0] * 9))
    assert ids.tolist() == [0, 1, 2]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_broken_logits(bad: float) -> None:
    """Logits without a finite best are a clear error."""
    with pytest.raises(ValueError, match="no finite logit"):
        Sampler(Sampling(), []).draw(row([bad] * 4))


def test_prompt_is_not_counted_without_penalty() -> None:
    """A penalty of 1 changes nothing, however long the prompt was."""
    sampler = Sampler(Sampling(temperature=0.0), list(range(3)))
    assert sampler.draw(row([1.0, 3.0, 2.0])) == 1


@given(
    size=st.integers(1, 40_000),
    levels=st.sampled_from([1, 3, 50, 1 << 20]),
    count=st.integers(1, 200),
    seed=st.integers(0, 9),
)
@settings(max_examples=60, deadline=None)
def test_likeliest_of_many(size: int, levels: int, count: int, seed: int) -> None:
    """The likeliest are those of a full sort, in its order, with however many ties and blocks."""
    generator = np.random.Generator(np.random.PCG64(seed))
    values = generator.integers(0, levels, size).astype(np.float32)
    values[generator.random(size) < 0.1] = -np.inf
    found = _likeliest(values, count)
    expected = np.argsort(-values, kind="stable")
    assert len(found) >= min(count, size)
    assert np.array_equal(found, expected[: len(found)])
