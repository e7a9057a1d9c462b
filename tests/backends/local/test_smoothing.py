"""Smoothing moves width between a norm and its products, and nothing else."""

from __future__ import annotations

from dataclasses import replace

import torch

from backends.local.model import Chunk, Decoder, random_weights
from backends.local.model_config import ModelConfig
from backends.local.paged import SequenceKV
from backends.local.quantize import quantize
from backends.local.smoothing import find_smoothing
from backends.local.testing import arena

CONFIG = ModelConfig.synthetic(windows=(32, None))
SAMPLE = list(range(3, 60))


def loud(channel: int) -> dict[str, torch.Tensor]:
    """Weights of which one channel of the first norm is a thousand times the others."""
    weights = random_weights(CONFIG, 0)
    weights["model.layers.0.input_layernorm.weight"][channel] = 1000.0
    return weights


def test_factors_are_powers_of_two_and_find_the_loud_channel() -> None:
    """So that moving one rounds nothing; a channel a thousand times as loud gets its root."""
    smoothing = find_smoothing(CONFIG, loud(5), SAMPLE)
    for factor in (*smoothing.qkv, *smoothing.gate_up, smoothing.head):
        assert torch.equal(torch.exp2(torch.round(torch.log2(factor))), factor)
    first = smoothing.qkv[0]
    assert int(first.argmax()) == 5
    assert 16 <= float(first[5] / first.median()) <= 64


def test_the_same_weights_and_text_give_the_same_name() -> None:
    """The name is part of the KV space: other factors are another model."""
    assert (
        find_smoothing(CONFIG, loud(5), SAMPLE).digest()
        == quantize(CONFIG, loud(5), SAMPLE).smoothing
    )
    assert quantize(CONFIG, loud(5)).numerics != quantize(CONFIG, loud(6)).numerics


def test_a_loud_channel_costs_little() -> None:
    """Logits stay near float32's where one channel would take all 8 bits of the others."""
    weights = loud(5)
    model = quantize(CONFIG, weights)
    exact = logits(Decoder.float32(CONFIG, weights))
    error = (logits(Decoder.of(model, None)) - exact).abs().mean()
    assert float(error) < 0.05 * float(exact.std())


def test_the_embedding_of_a_tied_model_is_what_it_was() -> None:
    """The head's factors are in the table; the embedding takes them out again."""
    weights = random_weights(CONFIG, 0)
    model = quantize(CONFIG, weights)
    table = model.embedding.codes.float() * model.embedding.scale.unsqueeze(1) * model.embed_factor
    exact = weights["model.embed_tokens.weight"] * CONFIG.embed_scale
    step = model.embedding.scale.unsqueeze(1) * model.embed_factor
    assert bool(((table - exact).abs() <= 0.5001 * step).all())
    untied = replace(CONFIG, tie_embeddings=False)
    factor = quantize(untied, random_weights(untied, 0)).embed_factor
    assert torch.equal(factor, torch.full_like(factor, CONFIG.embed_scale))


def logits(decoder: Decoder) -> torch.Tensor:
    """Those of all tokens of the sample."""
    kv = SequenceKV(arena(CONFIG, 256, kv_dtype=decoder.kv_dtype))
    return decoder.score(Chunk(kv, torch.tensor(SAMPLE)))
