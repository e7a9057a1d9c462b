"""Models of any size with random weights, by name, to compare architectures without training one.

`13b-mha` is a size and a shape. The shapes of one size have the same layers, hidden size and
number of parameters: what the attention saves, the MLP gets. Speed and memory do not depend on
what the weights say, so these stand for trained models of their shape in benchmarks.

    mha     as many KV heads as query heads, every layer global
    mqa     one KV head (Shazeer 2019)
    local   mqa, and five of six layers see their window alone
    cai     local, and neighbouring layers share their KV (docs/ladder.md names the sources)

`270m-gemma` is the exact shape of gemma-3-270m.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

import torch

from backends.local.errors import UnsupportedModel
from backends.local.layers import Layer
from backends.local.model_config import LayerSpec, ModelConfig
from backends.local.quantize import NARROW, QuantLinear, QuantModel, max_code

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

__all__ = [
    "HalfModel",
    "half_model",
    "int8_model",
    "kv_bytes",
    "parameter_count",
    "synthetic_config",
    "synthetic_names",
]

L = TypeVar("L")

SHAPES = ("mha", "mqa", "local", "cai")
_UNIFORM_STD = 73.6  # of whole numbers drawn evenly from [-127, 127]
_GEMMA_270M: dict[str, object] = {
    "model_type": "gemma3_text",
    "vocab_size": 262_144,
    "hidden_size": 640,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 256,
    "intermediate_size": 2048,
    "num_hidden_layers": 18,
    "hidden_activation": "gelu_pytorch_tanh",
    "rms_norm_eps": 1e-6,
    "sliding_window": 512,
    "sliding_window_pattern": 6,
    "query_pre_attn_scalar": 256,
    "max_position_embeddings": 32_768,
}


@dataclass(frozen=True, slots=True)
class _Size:
    parameters: int
    layers: int
    hidden: int
    heads: int
    window: int
    vocab: int


_SIZES = {
    "1m": _Size(1_000_000, layers=12, hidden=64, heads=4, window=32, vocab=512),
    "1b": _Size(1_000_000_000, layers=18, hidden=2048, heads=16, window=1024, vocab=32_768),
    "13b": _Size(13_000_000_000, layers=42, hidden=5120, heads=40, window=1024, vocab=32_768),
}


@dataclass(frozen=True, slots=True)
class HalfModel:
    """A decoder whose linear layers are plain tensors [out, in]; the head is the embedding."""

    config: ModelConfig
    embedding: Tensor
    norm: Tensor
    layers: tuple[Layer[Tensor], ...]


def synthetic_names() -> tuple[str, ...]:
    """Every name that `synthetic_config` knows."""
    return (*(f"{size}-{shape}" for size in _SIZES for shape in SHAPES), "270m-gemma")


def synthetic_config(name: str) -> ModelConfig:
    """The model called `name`; raises `UnsupportedModel` for a name that is not known."""
    if name == "270m-gemma":
        return ModelConfig.from_hf(_GEMMA_270M)
    size_name, _, shape = name.partition("-")
    size = _SIZES.get(size_name)
    if size is None or shape not in SHAPES:
        raise UnsupportedModel(f"{name!r} is not one of {', '.join(synthetic_names())}")
    sources = _kv_sources(size.layers) if shape == "cai" else {}
    config = ModelConfig(
        family="synthetic",
        vocab_size=size.vocab,
        hidden_size=size.hidden,
        q_heads=size.heads,
        kv_heads=size.heads if shape == "mha" else 1,
        head_dim=size.hidden // size.heads,
        intermediate_size=(step := min(128, size.hidden // 4)),
        layers=tuple(
            LayerSpec(
                window=size.window if shape in ("local", "cai") and not _is_global(at) else None,
                kv_source=sources.get(at),
            )
            for at in range(size.layers)
        ),
        attention_scale=(size.hidden // size.heads) ** -0.5,
        max_context=32_768,
    )
    lacking = size.parameters - parameter_count(config)
    more = round(lacking / (3 * size.hidden * size.layers * step))
    return replace(config, intermediate_size=step * (1 + more))


def _is_global(layer: int) -> bool:
    return layer % 6 == 5


def _kv_sources(layers: int) -> dict[int, int]:
    """Which layer's KV a layer reads: of five local ones 0-1 and 2-4, of the global ones threes.

    The global layers are tied across blocks, because they weigh most in a long context.
    """
    sources = {}
    for at in range(layers):
        block, within = divmod(at, 6)
        owner = (block - block % 3) * 6 + 5 if within == 5 else at - within + (within >= 2) * 2
        if owner != at:
            sources[at] = owner
    return sources


def parameter_count(config: ModelConfig) -> int:
    """How many weights the model has, tied ones once."""
    return sum(math.prod(shape) for shape in config.tensor_shapes().values())


def kv_bytes(config: ModelConfig, tokens: int, *, value_bytes: int, scale_bytes: int = 0) -> int:
    """The KV of one conversation of `tokens` tokens, nothing rounded up to pages.

    Sliding layers keep their window, layers that read another's KV nothing. `scale_bytes` are
    added for each token and head, for K and for V.
    """
    per_token = 2 * config.kv_heads * (config.head_dim * value_bytes + scale_bytes)
    return per_token * sum(
        tokens if spec.window is None else min(tokens, spec.window)
        for spec in config.layers
        if spec.kv_source is None
    )


def int8_model(config: ModelConfig, seed: int, device: str = "cpu") -> QuantModel:
    """Random int8 weights made on `device`; no wider copy of them ever exists.

    The same seed gives the same model on the same kind of device. Raises `UnsupportedModel` for
    untied embeddings.
    """
    _require_tied(config)
    generator = torch.Generator(device).manual_seed(seed)

    def draw(outputs: int, inputs: int) -> QuantLinear:
        codes = torch.empty((outputs, inputs), dtype=torch.int8, device=device)
        codes.random_(-127, 128, generator=generator)
        scale = torch.empty(outputs, device=device).uniform_(0.8, 1.2, generator=generator)
        return QuantLinear(codes, scale / (_UNIFORM_STD * math.sqrt(inputs)), NARROW)

    embedding = draw(config.vocab_size, config.hidden_size)
    # As `quantize` does: 8 bits everywhere but behind the gate.
    layers = tuple(
        replace(layer, down=replace(layer.down, max_code=max_code(config.intermediate_size)))
        for layer in _layers(config, draw, generator)
    )
    return QuantModel(
        config=config,
        embedding=embedding,
        embed_factor=torch.full((config.hidden_size,), config.embed_scale, device=device),
        head=embedding,
        norm=_norm(config.hidden_size, generator),
        layers=layers,
    )


def half_model(
    config: ModelConfig, seed: int, device: str = "cpu", dtype: torch.dtype = torch.bfloat16
) -> HalfModel:
    """Random weights of `dtype` made on `device`; otherwise like `int8_model`."""
    _require_tied(config)
    generator = torch.Generator(device).manual_seed(seed)

    def draw(outputs: int, inputs: int) -> Tensor:
        weight = torch.empty((outputs, inputs), dtype=dtype, device=device)
        return weight.normal_(0.0, inputs**-0.5, generator=generator)

    embedding = draw(config.vocab_size, config.hidden_size)
    layers = _layers(config, draw, generator)
    return HalfModel(config, embedding, _norm(config.hidden_size, generator), layers)


def _require_tied(config: ModelConfig) -> None:
    if not config.tie_embeddings:
        raise UnsupportedModel("synthetic models have tied embeddings")


def _norm(size: int, generator: torch.Generator) -> Tensor:
    device = generator.device
    return torch.empty(size, device=device).normal_(1.0, 0.1, generator=generator)


def _layers(
    config: ModelConfig, draw: Callable[[int, int], L], generator: torch.Generator
) -> tuple[Layer[L], ...]:
    """All layers; `draw` gives a linear layer of so many outputs and inputs."""
    hidden, inner, dim = config.hidden_size, config.intermediate_size, config.head_dim

    def layer(spec: LayerSpec) -> Layer[L]:
        kv_heads = config.kv_heads if spec.kv_source is None else 0
        qk_norm = None
        if config.qk_norm:
            parts = [_norm(dim, generator).expand(config.q_heads, -1)]
            if kv_heads:
                parts.append(_norm(dim, generator).expand(kv_heads, -1))
            qk_norm = torch.cat(parts)
        return Layer(
            spec=spec,
            qkv=draw((config.q_heads + 2 * kv_heads) * dim, hidden),
            out=draw(hidden, config.q_heads * dim),
            gate_up=draw(2 * inner, hidden),
            down=draw(hidden, inner),
            before_attention=_norm(hidden, generator),
            before_mlp=_norm(hidden, generator),
            qk_norm=qk_norm,
            after_attention=_norm(hidden, generator) if config.sandwich_norms else None,
            after_mlp=_norm(hidden, generator) if config.sandwich_norms else None,
        )

    return tuple(layer(spec) for spec in config.layers)
