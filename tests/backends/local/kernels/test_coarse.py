"""The head's first look in 4 bits: the largest logit and its token are those of the whole head."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from backends.local.checkpoint import load
from backends.local.kernels.coarse import coarseness
from backends.local.kernels.steps import CpuSteps
from backends.local.model import Chunk, Decoder, random_weights
from backends.local.model_config import ModelConfig
from backends.local.paged import SequenceKV
from backends.local.quantize import quantize
from backends.local.sampling import Draw, Settings
from backends.local.testing import arena
from benchmarks.quality import TEXT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from torch import Tensor

    from backends.local.kernels.cpu import CpuKernels
    from backends.local.quantize import QuantModel

VOCABULARY = 1003  # no whole number of blocks
GREEDY = Draw(Settings(1.0, 0.0, 1.0, -float("inf"), 0), 0.0, *[np.empty(0, np.int32)] * 2)


@pytest.fixture(params=[1, 2, 5])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """Runs the test with one thread, with two, and with more than there are cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def config_of(hidden: int, vocabulary: int = VOCABULARY) -> ModelConfig:
    config = ModelConfig.synthetic(vocab_size=vocabulary, hidden_size=hidden, head_dim=16)
    return replace(config, tie_embeddings=False)


def model_of(config: ModelConfig, seed: int, kind: str) -> QuantModel:
    """A random model whose head is `random`, `peaked`: few rows are long, `near`: all rows are
    nearly one, `equal`: many rows are one, or `lopsided`: few channels are most of a row."""
    weights = random_weights(config, seed)
    head = weights["lm_head.weight"]
    generator = torch.Generator().manual_seed(seed)
    if kind == "peaked":
        head *= torch.rand(len(head), 1, generator=generator) ** 8
    elif kind == "near":
        head.copy_(head[:1] + 0.02 * head)
    elif kind == "equal":
        head.copy_(head[torch.arange(len(head)) % 7])
    elif kind == "lopsided":
        head[:, ::5] *= 20
    return quantize(config, weights)


def both(
    decoder: Decoder, prompts: list[list[int]], wanted: int
) -> list[tuple[Tensor, list[int | None]]]:
    """Logits and greedy tokens of the last rows of prompts: of the whole head, of a coarse look."""
    found = []
    for only in (False, True):
        pool = arena(decoder.config, 64 * 64, kv_dtype="int8")
        chunks = [Chunk(SequenceKV(pool), p, min(wanted, len(p)), only) for p in prompts]
        logits = decoder.forward(chunks)
        copy = logits.clone()
        found.append((copy, decoder.draw(logits, [GREEDY] * len(logits))()))
    return found


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    hidden=st.sampled_from([16, 80, 144]),
    vocabulary=st.sampled_from([5, 16, 203, VOCABULARY, 4096]),
    kind=st.sampled_from(["random", "peaked", "near", "equal", "lopsided"]),
    seed=st.integers(0, 99),
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=4),
    wanted=st.integers(1, 4),
)
def test_the_largest_logit_and_its_token_are_those_of_the_whole_head(
    each_kernels: CpuKernels,
    threads: int,
    hidden: int,
    vocabulary: int,
    kind: str,
    seed: int,
    lengths: list[int],
    wanted: int,
) -> None:
    """Whatever head, rows and threads; every logit that there is is a logit of the whole head."""
    del threads
    config = config_of(hidden, vocabulary)
    decoder = Decoder.of(model_of(config, seed, kind), each_kernels)
    generator = torch.Generator().manual_seed(seed)
    prompts = [torch.randint(0, vocabulary, (n,), generator=generator).tolist() for n in lengths]
    (whole, expected), (coarse, found) = both(decoder, prompts, wanted)
    assert found == expected
    assert torch.equal(coarse.amax(1), whole.amax(1))
    there = coarse != -torch.inf
    assert torch.equal(coarse[there], whole[there])


def test_rows_that_cannot_be_the_largest_are_not_read(each_kernels: CpuKernels) -> None:
    """Most of a head whose rows are of very different lengths."""
    decoder = Decoder.of(model_of(config_of(144), 1, "peaked"), each_kernels)
    _, (coarse, _) = both(decoder, [[1, 2, 3]], 1)
    assert (coarse == -torch.inf).double().mean() > 0.5


@pytest.mark.parametrize(
    ("packaged", "least"), [("packaged_gemma", 0.9), ("packaged_smollm2", 0.6)]
)
def test_real_text_has_the_tokens_of_the_whole_head(
    packaged: str, least: float, request: pytest.FixtureRequest, each_kernels: CpuKernels
) -> None:
    """A packaged model, one to three rows a step, with most of the head unread where it is one."""
    folder: Path = request.getfixturevalue(packaged)
    loaded = load(folder, kernels=each_kernels)
    decoder, config = loaded.decoder, loaded.decoder.config
    ids = loaded.tokenizer.encode_text(TEXT.read_text()[:2000])[:200]
    pool = arena(config, 2 * 512, kv_dtype="int8")
    kvs = [SequenceKV(pool), SequenceKV(pool)]
    for kv in kvs:
        decoder.forward([Chunk(kv, ids[:100])])
    unread = []
    for at in range(100, len(ids) - 3, 3):
        rows = 1 + at // 3 % 3
        logits, tokens = [], []
        for kv, only in zip(kvs, (False, True), strict=True):
            made = decoder.forward([Chunk(kv, ids[at : at + 3], rows, only)])
            logits.append(made.clone())
            tokens.append(decoder.draw(made, [GREEDY] * rows)())
        assert tokens[0] == tokens[1]
        assert torch.equal(logits[0].amax(1), logits[1].amax(1))
        if rows == 1:  # more are looked at together where that pays
            unread.append(float((logits[1] == -torch.inf).double().mean()))
    assert np.mean(unread) > least


def test_a_look_that_leaves_most_of_the_head_is_given_up_for_a_while(
    each_kernels: CpuKernels,
) -> None:
    """It costs more than it saves; logits are whole, until it is tried again."""
    decoder = Decoder.of(model_of(config_of(144), 1, "near"), each_kernels)
    kv = SequenceKV(arena(decoder.config, 64 * 16, kv_dtype="int8"))
    told = []
    with capture_logs() as logs:
        for step in range(600):
            logits = decoder.forward([Chunk(kv, [1], 1, True)])
            decoder.draw(logits, [GREEDY])
            kv.retract(1)
            if logs:
                told.append(step)
                logs.clear()
    assert len(told) == 3  # of 600 steps
    assert {later - before for before, later in itertools.pairwise(told)} == {told[0] + 1 + 256}


def test_a_row_without_numbers_has_no_token(each_kernels: CpuKernels) -> None:
    """Neither with a whole head nor with a coarse look; a row beside it keeps its own."""
    model = model_of(config_of(144), 3, "peaked")
    scale = torch.where(torch.arange(VOCABULARY) == 7, torch.nan, model.embedding.scale)
    model = replace(model, embedding=replace(model.embedding, scale=scale))
    (_, expected), (_, found) = both(Decoder.of(model, each_kernels), [[7], [8]], 1)
    assert found == expected
    assert found[0] is None
    assert found[1] is not None


@pytest.mark.parametrize("row", [900, VOCABULARY - 2])
def test_a_logit_that_is_no_number_is_never_left_out(each_kernels: CpuKernels, row: int) -> None:
    """One broken row of the head: no token, as with the whole head; also in a block cut short."""
    model = model_of(config_of(144), 3, "peaked")
    scale = torch.where(torch.arange(VOCABULARY) == row, torch.nan, model.head.scale)
    model = replace(model, head=replace(model.head, scale=scale))
    (_, expected), (_, found) = both(Decoder.of(model, each_kernels), [[8]], 1)
    assert found == expected == [None]


def test_without_text_there_is_no_coarse_look(each_kernels: CpuKernels) -> None:
    """A model that does not know what its head is given reads the whole of it."""
    model = replace(model_of(config_of(144), 1, "peaked"), head_inputs=None)
    _, (coarse, _) = both(Decoder(model.config, CpuSteps(model, each_kernels)), [[1, 2]], 1)
    assert coarse.isfinite().all()


@pytest.mark.parametrize("broken", [0.0, torch.nan, torch.inf])
def test_inputs_that_say_nothing_give_no_directions(broken: float) -> None:
    """Too few of them, only zeros, or no numbers."""
    codes = torch.randint(-127, 128, (64, 32), dtype=torch.int8)
    assert coarseness(codes, torch.ones(3, 32)) is None
    assert coarseness(codes, torch.full((64, 32), broken)) is None


def test_levels_are_those_next_to_each_code() -> None:
    """Ascending, and a code that is a level is its own."""
    codes = torch.randint(-20, 21, (4096, 32), dtype=torch.int8)
    found = coarseness(codes, torch.randn(64, 32))
    assert found is not None
    levels, nearest = found.levels.long(), found.nearest.long()
    assert (levels.diff(dim=1) >= 0).all()
    values = torch.arange(256).expand(len(levels), 256)
    chosen = (levels.gather(1, nearest) - values).abs()
    assert torch.equal(chosen, (levels[:, None] - values[:, :, None]).abs().amin(2))
    eye = found.directions @ found.directions.T
    assert torch.allclose(eye, torch.eye(16), atol=1e-5)
