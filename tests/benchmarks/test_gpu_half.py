"""The half-precision decoder of the ladder's lower rungs computes what our own decoder does."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from backends.local.layers import fuse
from backends.local.model import Chunk, Decoder, random_weights
from backends.local.model_config import ModelConfig
from backends.local.synthetic import HalfModel, synthetic_config
from backends.local.testing import sequence
from benchmarks.gpu_half import HalfDecoder

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

SHAPES = {
    "mha": ModelConfig.synthetic(kv_heads=4, windows=(None, None), qk_norm=False),
    "local": ModelConfig.synthetic(windows=(32, 32, None), qk_norm=False),
    "cai": ModelConfig.synthetic(
        windows=(32, 32, None, None), kv_sources={1: 0, 3: 2}, qk_norm=False
    ),
}


def _stacked(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat(list(parts))


def _model(config: ModelConfig, weights: Mapping[str, Tensor]) -> HalfModel:
    return HalfModel(
        config,
        weights["model.embed_tokens.weight"],
        weights["model.norm.weight"],
        tuple(fuse(config, weights, at, _stacked) for at in range(len(config.layers))),
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_same_as_reference(shape: str) -> None:
    """Prompt and three more tokens give the logits of the float32 reference, past the window."""
    config = SHAPES[shape]
    weights = random_weights(config, 3)
    half = HalfDecoder(_model(config, weights), batch=2, capacity=80)
    reference, kv = Decoder.float32(config, weights), sequence(config)
    tokens = torch.arange(70) * 7 % config.vocab_size
    expected = reference.forward([Chunk(kv, tokens)])[0]
    other = half.prefill(tokens.flip(0), row=0)
    torch.testing.assert_close(half.prefill(tokens, row=1), expected, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(other, expected, atol=0.1)
    for step in range(3):
        token = torch.tensor([11 + step])
        expected = reference.forward([Chunk(kv, token)])[0]
        found = half.decode(token.expand(2), 70 + step)
        torch.testing.assert_close(found[1], expected, rtol=1e-3, atol=1e-3)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("shape", SHAPES)
def test_same_on_gpu(shape: str) -> None:
    """In fp16 with FlashAttention: the reference's logits, and a graph replays the step."""
    config = SHAPES[shape]
    weights = random_weights(config, 3)
    half_weights = {
        name: weight.cuda() if weight.dim() == 1 else weight.cuda().half()
        for name, weight in weights.items()
    }
    half = HalfDecoder(_model(config, half_weights), batch=8, capacity=80)
    reference, kv = Decoder.float32(config, weights), sequence(config)
    tokens = torch.arange(70) * 7 % config.vocab_size
    expected = reference.forward([Chunk(kv, tokens)])[0]
    for row in range(8):
        found = half.prefill(tokens.cuda(), row).float().cpu()
        assert float((found - expected).norm() / expected.norm()) < 0.02
    step = half.greedy_step(8, 70)  # token 0 everywhere, then its own argmax
    step()
    expected = reference.forward([Chunk(kv, torch.tensor([0]))])[0]
    found = half.decode(torch.zeros(8, dtype=torch.long, device="cuda"), 70)[5].float().cpu()
    assert float((found - expected).norm() / expected.norm()) < 0.02


def test_refuses_other_families() -> None:
    """A model with norms that it lacks is refused, not computed without them."""
    config = synthetic_config("270m-gemma")
    empty = torch.empty(0)
    with pytest.raises(ValueError, match="gemma3"):
        HalfDecoder(HalfModel(config, empty, empty, ()), batch=1, capacity=8)
