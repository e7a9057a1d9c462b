"""Whole steps of small decoders on the device: the bits of the PyTorch reference."""

from __future__ import annotations

from dataclasses import replace

import pytest

from backends.local.model import random_weights
from backends.local.model_config import Llama3Rope, ModelConfig
from backends.local.quantize import narrowed, quantize

SMALL = ModelConfig.synthetic(
    vocab_size=203, hidden_size=48, q_heads=3, kv_heads=1, windows=(40, None, 40), kv_sources={2: 0}
)
WITH_ALL = replace(
    ModelConfig.synthetic(vocab_size=70, hidden_size=32, q_heads=2, kv_heads=2, windows=(None,)),
    activation="gelu_tanh",
    sandwich_norms=True,
    tie_embeddings=False,
    embed_scale=5.7,
    llama3_rope=Llama3Rope(8.0, 1.0, 4.0, 128),
)
BARE = ModelConfig.synthetic(
    vocab_size=70, hidden_size=48, q_heads=1, kv_heads=1, head_dim=48, windows=(1,), qk_norm=False
)


@pytest.mark.parametrize(
    ("config", "counts"),
    [
        (SMALL, [(1, 6), (1, 1), (2, 1)]),
        (WITH_ALL, [(3, 1), (1, 1)]),
        (BARE, [(2, 1), (1, 1)]),
    ],
    ids=["hybrid", "everything", "bare"],
)
def test_steps_are_the_reference_s(
    device: str, config: ModelConfig, counts: list[tuple[int, ...]]
) -> None:
    """Logits and every byte of every page are equal, chunk beside decode, window and global."""
    from backends.local.gpu.steps import GpuSteps
    from backends.local.gpu.trial import differences

    model = quantize(config, random_weights(config, 3))
    assert differences(model, GpuSteps(model, device, context=256), counts) == ""


def test_activations_of_8_bits(device: str) -> None:
    """A model whose codes are within +-127 takes one digit, and gives the reference's bits."""
    from backends.local.gpu.steps import GpuSteps
    from backends.local.gpu.trial import differences

    model = narrowed(quantize(SMALL, random_weights(SMALL, 3)))
    assert differences(model, GpuSteps(model, device, context=256), [(1, 6), (1, 1)]) == ""


def test_a_difference_is_found(device: str) -> None:
    """The trial sees one changed scale of one layer."""
    from backends.local.gpu.steps import GpuSteps
    from backends.local.gpu.trial import differences

    model = quantize(BARE, random_weights(BARE, 3))
    layer = model.layers[0]
    scale = layer.down.scale.clone()
    scale[5] *= 1.001
    other = replace(model, layers=(replace(layer, down=replace(layer.down, scale=scale)),))
    assert "logits differ" in differences(model, GpuSteps(other, device, context=256), [(1, 1)])
