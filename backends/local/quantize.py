"""From float32 weights to int8: one scale per output channel, projections of one input fused.

Activations are quantised while the model runs, by row, to `max_code` (docs/engine.md says why they
are wider than 8 bits). Deterministic: the same weights give the same codes, and `NUMERICS` names
the whole scheme, so that KV made under another one is never taken for its own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from backends.local.layers import fuse

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor

    from backends.local.layers import Layer
    from backends.local.model_config import ModelConfig

__all__ = [
    "NUMERICS",
    "QuantLinear",
    "QuantModel",
    "as_float",
    "max_code",
    "narrowed",
    "quantize",
]

NUMERICS = "w8a14kv8.2"
"""The arithmetic of the int8 engine; part of the KV space. Raise it when any result changes."""

_WIDEST = 8191  # 14 bits
_SLAB = 1 << 22  # weights quantised at once, so that a large table needs no float32 copy


@dataclass(frozen=True, slots=True)
class QuantLinear:
    """A linear layer: weight = codes * scale. codes: int8 [N, K], |code| <= 127; scale: [N].

    Its inputs are rounded to whole numbers within +-`max_code` with one scale a row.
    """

    codes: Tensor
    scale: Tensor
    max_code: int


@dataclass(frozen=True, slots=True)
class QuantModel:
    """A whole decoder. `embedding` and `head` are one object when the weights are tied."""

    config: ModelConfig
    embedding: QuantLinear
    head: QuantLinear
    norm: Tensor
    layers: tuple[Layer[QuantLinear], ...]


def max_code(inputs: int) -> int:
    """The widest activation codes that `inputs` products with 8-bit weights add up in int32."""
    return min(_WIDEST, (2**31 - 1) // (127 * inputs))


@torch.inference_mode()
def quantize(config: ModelConfig, weights: Mapping[str, Tensor]) -> QuantModel:
    """The int8 model of float32 `weights`, named and shaped by `config.tensor_shapes()`."""
    embedding = _linear([weights["model.embed_tokens.weight"]])
    return QuantModel(
        config=config,
        embedding=embedding,
        head=embedding if config.tie_embeddings else _linear([weights["lm_head.weight"]]),
        norm=weights["model.norm.weight"] + config.norm_offset,
        layers=tuple(fuse(config, weights, at, _linear) for at in range(len(config.layers))),
    )


def as_float(model: QuantModel) -> QuantModel:
    """The same model with float32 codes."""
    return _each_linear(model, lambda linear: replace(linear, codes=linear.codes.float()))


def narrowed(model: QuantModel) -> QuantModel:
    """The same model with activations of 8 bits: for one that was trained with them."""
    return _each_linear(model, lambda linear: replace(linear, max_code=127))


def _each_linear(model: QuantModel, convert: Callable[[QuantLinear], QuantLinear]) -> QuantModel:
    embedding = convert(model.embedding)
    return QuantModel(
        config=model.config,
        embedding=embedding,
        head=embedding if model.head is model.embedding else convert(model.head),
        norm=model.norm,
        layers=tuple(
            replace(
                layer,
                qkv=convert(layer.qkv),
                out=convert(layer.out),
                gate_up=convert(layer.gate_up),
                down=convert(layer.down),
            )
            for layer in model.layers
        ),
    )


def _linear(weights: Sequence[Tensor]) -> QuantLinear:
    """Quantises weights [N_i, K] and stacks them by outputs."""
    inputs = weights[0].shape[1]
    outputs = sum(weight.shape[0] for weight in weights)
    codes = torch.empty((outputs, inputs), dtype=torch.int8)
    scale = torch.empty(outputs)
    at = 0
    for weight in weights:
        for slab in torch.split(weight, max(1, _SLAB // inputs)):
            rows = slice(at, at + slab.shape[0])
            scale[rows] = slab.abs().amax(1) * (1 / 127)
            divisor = torch.where(scale[rows] > 0, scale[rows], 1.0).unsqueeze(1)
            codes[rows] = torch.round(slab / divisor).clamp_(-127, 127).to(torch.int8)
            at = rows.stop
    return QuantLinear(codes, scale, max_code(inputs))
