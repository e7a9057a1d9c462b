"""From float32 weights to int8: half a step of error, no overflow, one table where tied."""

from __future__ import annotations

from dataclasses import replace

import torch
from hypothesis import given
from hypothesis import strategies as st

from backends.local.layers import fuse
from backends.local.model import random_weights
from backends.local.model_config import ModelConfig
from backends.local.quantize import QuantLinear, max_code, quantize

CONFIG = ModelConfig.synthetic(windows=(32, None))


def back(linear: QuantLinear) -> torch.Tensor:
    return linear.codes.float() * linear.scale.unsqueeze(1)


def test_every_weight_is_within_half_a_step() -> None:
    """Fused q, k, v and gate, up come back in order, each to half its row's step.

    What smoothing moved into them is what the norm before them lost.
    """
    weights = random_weights(CONFIG, 0)
    layer = quantize(CONFIG, weights).layers[1]
    exact_layer = fuse(CONFIG, weights, 1, lambda parts: torch.cat(list(parts)))
    qkv = exact_layer.before_attention / layer.before_attention
    gate_up = exact_layer.before_mlp / layer.before_mlp
    for linear, exact in (
        (layer.qkv, exact_layer.qkv * qkv),
        (layer.gate_up, exact_layer.gate_up * gate_up),
        (layer.out, exact_layer.out),
        (layer.down, exact_layer.down),
    ):
        assert int(linear.codes.abs().max()) == 127
        assert bool(((back(linear) - exact).abs() <= 0.5001 * linear.scale.unsqueeze(1)).all())


def test_a_row_of_zeros_is_zeros() -> None:
    """A channel that says nothing makes no NaN."""
    weights = random_weights(CONFIG, 0)
    weights["model.layers.0.mlp.down_proj.weight"][3] = 0.0
    down = quantize(CONFIG, weights).layers[0].down
    assert down.codes[3].count_nonzero() == 0
    assert torch.isfinite(down.scale).all()


def test_tied_tables_are_one_object() -> None:
    """The head of a tied model takes no memory of its own; an untied one does."""
    tied = quantize(CONFIG, random_weights(CONFIG, 0))
    assert tied.head is tied.embedding
    untied_config = replace(CONFIG, tie_embeddings=False)
    untied = quantize(untied_config, random_weights(untied_config, 0))
    assert not torch.equal(untied.head.codes, untied.embedding.codes)


@given(st.integers(1, 100_000))
def test_the_widest_sum_fits_32_bits(inputs: int) -> None:
    """For any number of inputs the largest sum stays below 2**31, with at least 7 bits left."""
    assert max_code(inputs) * 127 * inputs < 2**31
    assert max_code(inputs) >= 127
