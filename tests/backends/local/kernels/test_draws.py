"""The C++ draws against numpy's: the same tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from backends.api import Sampling
from backends.local.kernels.draws import draw_rows
from backends.local.kernels.steps import CpuSteps
from backends.local.model import Chunk, Decoder, random_weights
from backends.local.model_config import ModelConfig
from backends.local.paged import SequenceKV
from backends.local.quantize import quantize
from backends.local.sampling import Draw, draw
from backends.local.sampling import draw_rows as in_numpy
from backends.local.testing import arena
from tests.backends.local.drawing import LAST, ask, cases

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from backends.local.kernels.cpu import CpuKernels


@settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(case=cases(sizes=(3, 64, 65, 200, 900, 5000, 40_000), rows=6), known=st.booleans())
def test_the_tokens_are_numpy_s(
    each_kernels: CpuKernels, case: tuple[NDArray[np.float32], list[Draw | None]], known: bool
) -> None:
    """Rows of any size, one or many, with any settings, also where a step says the largest."""
    logits, draws = case
    largest = largest_of_blocks(torch.from_numpy(logits)) if known else None
    address = None if largest is None else largest.data_ptr()
    found = draw_rows(each_kernels, torch.from_numpy(logits.copy()), draws, address)
    assert found == in_numpy(logits, draws)


def test_a_masked_logit_need_not_be_a_number(each_kernels: CpuKernels) -> None:
    """Nor where a step says the largest, which was before the mask; any other gives no token."""
    logits = torch.zeros(2, 100)
    logits[0, 70] = logits[1, 71] = torch.nan
    draws: list[Draw | None] = [ask(Sampling(temperature=0.0), 0.0, (), (70,))] * 2
    largest = largest_of_blocks(logits)
    assert in_numpy(logits.numpy().copy(), draws) == [0, None]
    assert draw_rows(each_kernels, logits, draws, largest.data_ptr()) == [0, None]


def largest_of_blocks(logits: Tensor) -> Tensor:
    """The largest of every 16 logits, a NaN where one is: what a step leaves beside them."""
    padded = F.pad(logits, (0, -logits.shape[1] % 16), value=-torch.inf)
    return padded.view(len(logits), -1, 16).amax(-1)  # amax gives NaNs on


def test_a_step_leaves_the_largest_of_every_block(each_kernels: CpuKernels) -> None:
    """The kernels' own, for a vocabulary that is no whole number of blocks."""
    config = ModelConfig.synthetic(vocab_size=203, hidden_size=80, head_dim=16)
    steps = CpuSteps(quantize(config, random_weights(config, 3)), each_kernels)
    decoder = Decoder(config, steps)
    logits = decoder.score(Chunk(SequenceKV(arena(config, 64, kv_dtype="int8")), torch.arange(19)))
    assert steps._last is not None
    behind = steps._last[1][logits.numel() :].view(19, -1)
    assert torch.equal(behind, largest_of_blocks(logits))
    draws: list[Draw | None] = [ask(Sampling(temperature=1.0, top_k=5), 0.6, (1, 200))] * 19
    plain = in_numpy(logits.numpy().copy(), draws)
    assert decoder.draw(logits, draws)() == plain
    assert steps._last is None


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
