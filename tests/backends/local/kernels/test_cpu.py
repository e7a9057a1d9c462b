"""The C++ kernels against the pure PyTorch path: the same bits, whatever the batch."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from backends.local.kernels import cpu, reference
from backends.local.model import Chunk, Decoder, random_weights
from backends.local.model_config import Llama3Rope, ModelConfig
from backends.local.paged import SequenceKV
from backends.local.quantize import quantize
from backends.local.testing import arena

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from torch import Tensor

    from backends.local.kernels.cpu import CpuKernels

VOCABULARY = 203  # no whole number of blocks


@st.composite
def models(draw: st.DrawFn) -> ModelConfig:
    """Small decoders of every kind: MQA to MHA, windows, shared KV, norms, gates."""
    kv_heads = draw(st.sampled_from([1, 2, 3]))
    windows = draw(st.lists(st.sampled_from([None, 1, 40, 130, 300]), min_size=1, max_size=3))
    owners: dict[int | None, int] = {}
    sources = {}
    for index, window in enumerate(windows):
        if window in owners and draw(st.booleans()):
            sources[index] = owners[window]
        else:
            owners[window] = index
    config = ModelConfig.synthetic(
        vocab_size=VOCABULARY,
        hidden_size=draw(st.sampled_from([16, 80, 144])),
        q_heads=kv_heads * draw(st.sampled_from([1, 3, 4, 17])),
        kv_heads=kv_heads,
        head_dim=draw(st.sampled_from([16, 48, 64])),
        windows=windows,
        kv_sources=sources,
        qk_norm=draw(st.booleans()),
    )
    return replace(
        config,
        activation=draw(st.sampled_from(["silu", "gelu_tanh"])),
        sandwich_norms=draw(st.booleans()),
        tie_embeddings=draw(st.booleans()),
        embed_scale=draw(st.sampled_from([1.0, 25.3])),
        llama3_rope=draw(st.sampled_from([None, Llama3Rope(8.0, 1.0, 4.0, 128)])),
    )


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """Runs the test with one thread and with two."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


STEPS = st.lists(
    st.lists(
        st.one_of(st.just(0), st.just(1), st.integers(2, 5), st.integers(1, 250)),
        min_size=3,
        max_size=3,
    ),
    min_size=1,
    max_size=4,
)
"""New tokens of three sequences, step by step."""


def loud_weights(config: ModelConfig, seed: int, loud: float) -> dict[str, Tensor]:
    """Random ones, but some inputs of every down projection are so much louder."""
    weights = random_weights(config, seed)
    for name, weight in weights.items():
        if name.endswith("up_proj.weight"):
            weight[::53] *= loud
    return weights


def test_loud_inputs_are_in_the_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `loud_weights` gives makes codes above 127, and not many."""
    config = ModelConfig.synthetic(vocab_size=VOCABULARY, hidden_size=144, head_dim=48)
    decoder = Decoder.int8(config, loud_weights(config, 1, 60.0), None)
    codes: list[Tensor] = []

    def counted(x: Tensor, max_code: int) -> tuple[Tensor, Tensor]:
        found = real(x, max_code)
        codes.append(found[0])
        return found

    real = reference.activation_codes
    monkeypatch.setattr(reference, "activation_codes", counted)
    decoder.forward([Chunk(SequenceKV(arena(config, 64, kv_dtype="int8")), torch.arange(9))])
    above = torch.cat([(c.abs() > 127).float().mean(-1) for c in codes])
    assert 0 < float(above.max()) < 1 / 15


@settings(
    max_examples=25,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    config=models(),
    steps=STEPS,
    wanted=st.integers(1, 5),
    seed=st.integers(0, 99),
    loud=st.sampled_from([1.0, 60.0]),
)
def test_kernels_and_reference_agree_bit_for_bit(
    each_kernels: CpuKernels,
    threads: int,
    config: ModelConfig,
    steps: list[list[int]],
    wanted: int,
    seed: int,
    loud: float,
) -> None:
    """Logits and every byte of every page are equal, also where nobody wrote."""
    del threads
    weights = loud_weights(config, seed, loud)
    decoders = [Decoder.int8(config, weights, None), Decoder.int8(config, weights, each_kernels)]
    pools = [arena(config, 3 * 1100, kv_dtype="int8") for _ in decoders]
    generator = torch.Generator().manual_seed(seed)
    for group, pages in pools[0].pages.items():
        pages.random_(0, 256, generator=generator)  # whatever was there before
        pools[1].pages[group].copy_(pages)
    sequences = [[SequenceKV(pool) for _ in range(3)] for pool in pools]
    for counts in steps:
        tokens = [torch.randint(0, VOCABULARY, (n,), generator=generator) for n in counts]
        if not any(counts):
            continue
        logits = [
            decoder.forward(
                [
                    Chunk(kv, t, wanted=min(wanted, len(t)))
                    for kv, t in zip(kvs, tokens, strict=True)
                    if len(t)
                ]
            )
            for decoder, kvs in zip(decoders, sequences, strict=True)
        ]
        assert torch.isfinite(logits[0]).all()
        assert torch.equal(*logits)
        for group, pages in pools[0].pages.items():
            assert torch.equal(pages, pools[1].pages[group])


def test_a_row_without_numbers_harms_no_other(each_kernels: CpuKernels, threads: int) -> None:
    """A token whose embedding is not a number: what stands beside it in a step keeps its bits."""
    del threads
    config = replace(
        ModelConfig.synthetic(vocab_size=VOCABULARY, hidden_size=144, head_dim=48),
        tie_embeddings=False,
        intermediate_size=1536,
    )
    model = quantize(config, random_weights(config, 2))
    scale = torch.where(torch.arange(VOCABULARY) == 7, torch.nan, model.embedding.scale)
    model = replace(model, embedding=replace(model.embedding, scale=scale))
    decoder = Decoder.of(model, each_kernels)

    def logits_of(tokens: list[int]) -> Tensor:
        pool = arena(config, 64 * 16, kv_dtype="int8")
        chunks = [Chunk(SequenceKV(pool), torch.tensor([token])) for token in tokens]
        return decoder.forward(chunks)

    expected = logits_of(list(range(8, 20)))
    for place in range(12):
        tokens = list(range(8, 20))
        tokens[place] = 7
        found = logits_of(tokens)
        assert not torch.isfinite(found[place]).any()
        rest = torch.arange(12) != place
        assert torch.equal(found[rest], expected[rest])


def test_every_row_of_a_chunk_can_be_scored(kernels: CpuKernels) -> None:
    """`score` gives the logits of all tokens, the same from both."""
    config = ModelConfig.synthetic(vocab_size=VOCABULARY)
    weights = random_weights(config, 1)
    tokens = torch.arange(100)
    both = [
        Decoder.int8(config, weights, k).score(
            Chunk(SequenceKV(arena(config, kv_dtype="int8")), tokens)
        )
        for k in (None, kernels)
    ]
    assert both[0].shape == (100, VOCABULARY)
    assert torch.equal(*both)


def test_sizes_that_the_registers_cannot_hold_are_left_to_pytorch(kernels: CpuKernels) -> None:
    """A head of 24 is no whole number of vectors: the reference runs it."""
    odd = ModelConfig.synthetic(head_dim=24)
    assert kernels.supports(ModelConfig.synthetic())
    assert not kernels.supports(odd)
    decoder = Decoder.int8(odd, random_weights(odd, 0), kernels)
    chunk = Chunk(SequenceKV(arena(odd, kv_dtype="int8")), torch.arange(5))
    assert torch.isfinite(decoder.forward([chunk])).all()


def test_a_second_build_is_found_in_the_cache(
    tmp_path: Path, kernels: CpuKernels, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The compiler runs once a source and machine."""
    del kernels  # says that a compiler is here
    assert cpu.build(tmp_path) is not None

    def never(*_: object, **__: object) -> None:
        raise AssertionError("compiled again")

    monkeypatch.setattr(subprocess, "run", never)
    assert cpu.build(tmp_path) is not None
    assert len(list(tmp_path.iterdir())) == 1


def test_without_a_working_compiler_there_are_no_kernels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A compiler that fails, or none, is None and leaves no half file behind."""
    monkeypatch.setenv("CXX", "false")
    assert cpu.build(tmp_path) is None
    monkeypatch.setenv("CXX", str(tmp_path / "nowhere"))
    assert cpu.build(tmp_path) is None
    assert list(tmp_path.iterdir()) == []


def test_a_machine_without_vectors_has_no_kernels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On another architecture nothing is compiled."""
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert cpu.variants() == []
    assert cpu.build(tmp_path) is None
