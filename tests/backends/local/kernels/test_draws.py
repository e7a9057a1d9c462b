"""The C++ draws against numpy's: the same tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings

from backends.api import Sampling
from backends.local.kernels.draws import draw_rows
from backends.local.sampling import Draw, draw
from backends.local.sampling import draw_rows as in_numpy
from tests.backends.local.drawing import LAST, ask, cases

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from backends.local.kernels.cpu import CpuKernels


@settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(case=cases(sizes=(3, 64, 65, 200, 900, 5000, 40_000), rows=6))
def test_the_tokens_are_numpy_s(
    each_kernels: CpuKernels, case: tuple[NDArray[np.float32], list[Draw | None]]
) -> None:
    """Rows of any size, one or many, with any settings."""
    logits, draws = case
    found = draw_rows(each_kernels, torch.from_numpy(logits.copy()), draws)
    assert found == in_numpy(logits, draws)


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=0.75, top_p=0.9, min_p=0.05, repetition_penalty=1.1),
        Sampling(temperature=0.8, top_k=40),
        Sampling(temperature=2.0, top_p=0.95),
        Sampling(temperature=1.0, top_p=1.0),
        Sampling(temperature=3.0, top_p=1.0, min_p=0.01),
        Sampling(temperature=0.0),
    ],
    ids=["profile", "top-k", "wide", "plain", "flat", "greedy"],
)
def test_a_large_vocabulary(each_kernels: CpuKernels, sampling: Sampling) -> None:
    """262,144 logits by Zipf's law, drawn from among the first, in the middle and at the end."""
    random = np.random.default_rng(3)
    logits = (-1.1 * np.log1p(random.permutation(262_144))).astype(np.float32)
    seen = tuple(np.argsort(-logits)[::7][:500].tolist())
    draws: list[Draw | None] = [ask(sampling, u, seen) for u in (0.0, 0.31, 0.77, 0.99, LAST)]
    rows = torch.from_numpy(logits).repeat(len(draws), 1)
    assert draw_rows(each_kernels, rows, draws) == [
        draw(logits.copy(), asked) for asked in draws if asked
    ]
