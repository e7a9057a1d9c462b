"""Synthetic models: their shapes, sizes and KV are what their names say."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from backends.local.errors import UnsupportedModel
from backends.local.int8 import Int8Steps
from backends.local.model import Chunk, Decoder
from backends.local.synthetic import (
    half_model,
    int8_model,
    kv_bytes,
    parameter_count,
    synthetic_config,
    synthetic_names,
)
from backends.local.testing import sequence

SIZES = {"1m": 1e6, "1b": 1e9, "13b": 13e9, "270m": 270e6}


@pytest.mark.parametrize("name", synthetic_names())
def test_parameter_count(name: str) -> None:
    """Every model has the parameters of its name within 5 %."""
    expected = SIZES[name.partition("-")[0]]
    assert parameter_count(synthetic_config(name)) == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("size", ["1m", "1b", "13b"])
def test_same_size(size: str) -> None:
    """The shapes of one size differ by less than 3 % in parameters."""
    counts = [parameter_count(synthetic_config(n)) for n in synthetic_names() if n.startswith(size)]
    assert len(counts) == 4
    assert max(counts) / min(counts) < 1.03


def test_unknown_name() -> None:
    """A name that nobody knows is refused with those that are known."""
    for name in ("13b", "13b-gqa", "2b-mha", ""):
        with pytest.raises(UnsupportedModel, match="1b-mqa"):
            synthetic_config(name)


def test_shapes() -> None:
    """MHA has a KV head for each query head, the others one; horizons and sharing come in turn."""
    mha, mqa, local, cai = (synthetic_config(f"13b-{s}") for s in ("mha", "mqa", "local", "cai"))
    assert mha.kv_heads == mha.q_heads == 40
    assert mqa.kv_heads == local.kv_heads == cai.kv_heads == 1
    assert all(spec.window is None for spec in mha.layers + mqa.layers)
    assert [spec.window for spec in local.layers[:6]] == [1024] * 5 + [None]
    assert [spec.window for spec in cai.layers] == [spec.window for spec in local.layers]
    assert all(spec.kv_source is None for spec in local.layers)
    owners = [at for at, spec in enumerate(cai.layers) if spec.kv_source is None]
    assert [at for at in owners if at % 6 != 5] == [b * 6 + w for b in range(7) for w in (0, 2)]
    assert [at for at in owners if at % 6 == 5] == [5, 23, 41]


def test_kv_bytes() -> None:
    """KV follows the formula: heads, horizons, owners, bytes of a value and of a scale."""
    context, both, dim = 5600, 2, 128
    expected = {
        "mha": 42 * context * both * 40 * dim * 2,
        "mqa": 42 * context * both * dim * 2,
        "local": (7 * context + 35 * 1024) * both * dim * 2,
        "cai": (3 * context + 14 * 1024) * both * dim * 2,
    }
    found = {s: kv_bytes(synthetic_config(f"13b-{s}"), context, value_bytes=2) for s in expected}
    assert found == expected
    cai = synthetic_config("13b-cai")
    int8 = kv_bytes(cai, context, value_bytes=1, scale_bytes=2)
    assert int8 == (3 * context + 14 * 1024) * both * (dim + 2)
    # The store counts the same for a token of every layer.
    per_token = sum(group.bytes_per_token for group in cai.kv_layout("int8").groups)
    assert kv_bytes(cai, 1, value_bytes=1, scale_bytes=2) == per_token


def test_sharing_is_seen_by_neighbours() -> None:
    """In `cai` a local layer reads a neighbour's KV; a global one that of a global one before."""
    for at, spec in enumerate(synthetic_config("13b-cai").layers):
        if spec.kv_source is not None and spec.window is not None:
            assert at - spec.kv_source <= 2
            assert spec.kv_source // 6 == at // 6
    globals_ = [s.kv_source for s in synthetic_config("13b-cai").layers if s.window is None]
    known = [source for source in globals_ if source is not None]
    assert all(a <= b for a, b in pairwise(known))


def test_seed() -> None:
    """A seed names one model; another seed another."""
    config = synthetic_config("1m-cai")
    first, again, other = int8_model(config, 1), int8_model(config, 1), int8_model(config, 2)
    assert torch.equal(first.layers[3].down.codes, again.layers[3].down.codes)
    assert torch.equal(first.layers[3].down.scale, again.layers[3].down.scale)
    assert not torch.equal(first.layers[3].down.codes, other.layers[3].down.codes)
    half = half_model(config, 1)
    assert torch.equal(half.embedding, half_model(config, 1).embedding)
    assert half.embedding.dtype == torch.bfloat16


def test_drawn_shapes() -> None:
    """The fused weights have the shapes of the model's tensors, and int8 the same as half."""
    config = synthetic_config("1m-cai")
    int8, half = int8_model(config, 1), half_model(config, 1)
    drawn = int8.embedding.codes.numel()
    for spec, a, b in zip(config.layers, int8.layers, half.layers, strict=True):
        assert a.spec == b.spec == spec
        for left, right in ((a.qkv, b.qkv), (a.out, b.out), (a.gate_up, b.gate_up)):
            assert left.codes.shape == right.shape
        drawn += sum(part.codes.numel() for part in (a.qkv, a.out, a.gate_up, a.down))
    norms = config.hidden_size * (2 * len(config.layers) + 1)
    assert drawn + norms == parameter_count(config)


def test_it_runs() -> None:
    """A small one computes finite logits of ordinary size."""
    config = synthetic_config("1m-cai")
    decoder = Decoder(config, Int8Steps(int8_model(config, 1)))
    kv = sequence(config, kv_dtype="int8")
    logits = decoder.forward([Chunk(kv, torch.arange(200) % config.vocab_size)])
    assert logits.shape == (1, config.vocab_size)
    assert 0.1 < float(logits.std()) < 10
