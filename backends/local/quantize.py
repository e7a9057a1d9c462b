"""From float32 weights to int8: one scale per output channel, projections of one input fused.

Activations are quantised while the model runs, by row, to `max_code`: 8 bits behind a norm, whose
loud channels were smoothed, and behind attention; wider for loud inputs behind the gate
(docs/engine.md says what each costs). `QuantModel.numerics` names the whole scheme, so that KV made
under another one is never taken for its own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from backends.local.layers import Layer, fuse
from backends.local.smoothing import find_smoothing

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor

    from backends.local.model_config import ModelConfig

__all__ = [
    "NARROW",
    "NUMERICS",
    "QuantLinear",
    "QuantModel",
    "as_float",
    "max_code",
    "narrowed",
    "quantize",
]

NUMERICS = "w8a8kv8.4"
"""The arithmetic of the int8 engine; part of the KV space. Raise it when any result changes."""

NARROW = 127
"""Activation codes of 8 bits."""

_WIDEST = NARROW << 6  # 14 bits, a sign among them
_SAMPLE_LEN = 256
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
    """A whole decoder. `embedding` and `head` are one object when the weights are tied.

    `embed_factor`: float32 [hidden], what an embedding's codes times their scale are multiplied
    with. `smoothing` names the factors that were moved between norms and products. `head_inputs`:
    float32 [S, hidden], what the head is given on a sample of text, where that is known.
    """

    config: ModelConfig
    embedding: QuantLinear
    embed_factor: Tensor
    head: QuantLinear
    norm: Tensor
    layers: tuple[Layer[QuantLinear], ...]
    smoothing: str = "none"
    head_inputs: Tensor | None = None

    @property
    def numerics(self) -> str:
        """The name of the arithmetic: models of equal weights and name give the same bits."""
        return f"{NUMERICS}/{self.smoothing}"


def max_code(inputs: int) -> int:
    """The widest activation codes that `inputs` products with 8-bit weights add up in int32.

    `NARROW` times a power of two; see `reference.activation_codes`.
    """
    widest = _WIDEST
    while widest > NARROW and widest * 127 * inputs >= 2**31:
        widest //= 2
    return widest


@torch.inference_mode()
def quantize(
    config: ModelConfig, weights: Mapping[str, Tensor], sample: Sequence[int] | None = None
) -> QuantModel:
    """The int8 model of float32 `weights`, named and shaped by `config.tensor_shapes()`.

    `sample`: token ids of a little text, by which channels are smoothed; without one, ids from all
    over the vocabulary.
    """
    if not sample:
        sample = [at * config.vocab_size // _SAMPLE_LEN for at in range(_SAMPLE_LEN)]
    smoothing = find_smoothing(config, weights, sample)
    table, factor = weights["model.embed_tokens.weight"], torch.tensor(config.embed_scale)
    tied = config.tie_embeddings
    embedding = _linear([table], smoothing.head if tied else None, NARROW)
    return QuantModel(
        config=config,
        embedding=embedding,
        # The head's table is the embedding's, with the head's factors in it.
        embed_factor=factor / smoothing.head if tied else factor.repeat(config.hidden_size),
        head=embedding if tied else _linear([weights["lm_head.weight"]], smoothing.head, NARROW),
        norm=(weights["model.norm.weight"] + config.norm_offset) / smoothing.head,
        layers=tuple(
            _layer(fuse(config, weights, at, list), smoothing.qkv[at], smoothing.gate_up[at])
            for at in range(len(config.layers))
        ),
        smoothing=smoothing.digest(),
        head_inputs=smoothing.head_inputs,
    )


def _layer(layer: Layer[list[Tensor]], qkv: Tensor, gate_up: Tensor) -> Layer[QuantLinear]:
    return Layer(
        spec=layer.spec,
        qkv=_linear(layer.qkv, qkv, NARROW),
        out=_linear(layer.out, None, NARROW),
        gate_up=_linear(layer.gate_up, gate_up, NARROW),
        down=_linear(layer.down, None, _WIDEST),
        before_attention=layer.before_attention / qkv,
        before_mlp=layer.before_mlp / gate_up,
        qk_norm=layer.qk_norm,
        after_attention=layer.after_attention,
        after_mlp=layer.after_mlp,
    )


def as_float(model: QuantModel) -> QuantModel:
    """The same model with float32 codes."""
    return _each_linear(model, lambda linear: replace(linear, codes=linear.codes.float()))


def narrowed(model: QuantModel) -> QuantModel:
    """The same model with activations of 8 bits: for one that was trained with them."""
    return _each_linear(model, lambda linear: replace(linear, max_code=NARROW))


def _each_linear(model: QuantModel, convert: Callable[[QuantLinear], QuantLinear]) -> QuantModel:
    embedding = convert(model.embedding)
    return replace(
        model,
        embedding=embedding,
        head=embedding if model.head is model.embedding else convert(model.head),
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


def _linear(weights: Sequence[Tensor], factor: Tensor | None, widest: int) -> QuantLinear:
    """Quantises weights [N_i, K], times `factor` [K], and stacks them by outputs."""
    inputs = weights[0].shape[1]
    outputs = sum(weight.shape[0] for weight in weights)
    codes = torch.empty((outputs, inputs), dtype=torch.int8)
    scale = torch.empty(outputs)
    at = 0
    for weight in weights:
        for slab in torch.split(weight, max(1, _SLAB // inputs)):
            rows = slice(at, at + slab.shape[0])
            slab = slab if factor is None else slab * factor
            scale[rows] = slab.abs().amax(1) * (1 / 127)
            divisor = torch.where(scale[rows] > 0, scale[rows], 1.0).unsqueeze(1)
            codes[rows] = torch.round(slab / divisor).clamp_(-127, 127).to(torch.int8)
            at = rows.stop
    return QuantLinear(codes, scale, min(widest, max_code(inputs)))
