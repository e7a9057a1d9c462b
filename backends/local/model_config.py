"""The shape of a decoder, read once from a Hugging Face `config.json`. No torch.

One description covers MHA, GQA and MQA, sliding and global layers, two RoPE bases, QK-norm and
Gemma's four norms a layer; `backends.local.model` has no `if` on a family's name.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from backends.local.errors import UnsupportedModel, WeightsDamaged
from kvstore.api import Group, Layout

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["KVDtype", "LayerSpec", "Llama3Rope", "ModelConfig"]

Activation = Literal["silu", "gelu_tanh"]
KVDtype = Literal["int8", "float32"]
_ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "gelu_pytorch_tanh": "gelu_tanh",
}


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """What differs from layer to layer.

    `window` None is global attention; n lets a token see itself and the n - 1 before it.
    Positions are divided by `rope_scale`. A layer with a `kv_source` owns no KV: its queries
    read the KV of that earlier layer.
    """

    window: int | None = None
    rope_theta: float = 10_000.0
    rope_scale: float = 1.0
    kv_source: int | None = None


@dataclass(frozen=True, slots=True)
class Llama3Rope:
    """Llama 3's stretch of the slow RoPE frequencies (`rope_type: llama3`)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_context: int


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Everything that the decoder must know besides its weights.

    `norm_offset` is added to every RMSNorm weight (Gemma stores weight - 1). `sandwich_norms`
    puts a norm after attention and after the MLP as well as before. `max_context` counts tokens.
    """

    family: str
    vocab_size: int
    hidden_size: int
    q_heads: int
    kv_heads: int
    head_dim: int
    intermediate_size: int
    layers: tuple[LayerSpec, ...]
    activation: Activation = "silu"
    rms_eps: float = 1e-6
    norm_offset: float = 0.0
    qk_norm: bool = False
    sandwich_norms: bool = False
    embed_scale: float = 1.0
    attention_scale: float = 1.0
    tie_embeddings: bool = True
    llama3_rope: Llama3Rope | None = None
    max_context: int = 4096
    bos_id: int | None = None
    eos_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.q_heads % self.kv_heads:
            raise UnsupportedModel(
                f"{self.q_heads} query heads do not divide among {self.kv_heads} KV heads"
            )
        for index, layer in enumerate(self.layers):
            source = layer.kv_source
            if source is None:
                continue
            if not 0 <= source < index or self.layers[source].kv_source is not None:
                raise UnsupportedModel(f"layer {index} reads the KV of {source}, not an owner")
            if self.layers[source].window != layer.window:
                raise UnsupportedModel(f"layer {index} and its KV source differ in window")

    @classmethod
    def from_hf(cls, raw: Mapping[str, object]) -> ModelConfig:
        """The shape described by a parsed `config.json` of the Gemma 3 text or Llama family.

        Reads the keys of transformers 4 and of transformers 5. Raises `UnsupportedModel` for
        another architecture or a feature this engine lacks, `WeightsDamaged` for a missing key
        or a value of the wrong type.
        """
        kind = raw.get("model_type")
        if kind == "gemma3_text":
            return _gemma3(_Keys(raw))
        if kind == "llama":
            return _llama(_Keys(raw))
        raise UnsupportedModel(f"model_type {kind!r} is not one of gemma3_text, llama")

    @classmethod
    def synthetic(
        cls,
        *,
        vocab_size: int = 512,
        hidden_size: int = 64,
        q_heads: int = 4,
        kv_heads: int = 1,
        head_dim: int = 16,
        windows: Sequence[int | None] = (32, 32, None),
        kv_sources: Mapping[int, int] | None = None,
        qk_norm: bool = True,
        max_context: int = 4096,
        eos_ids: tuple[int, ...] = (),
    ) -> ModelConfig:
        """A made-up model for tests and benchmarks: hybrid MQA unless told otherwise."""
        sources = kv_sources or {}
        return cls(
            family="synthetic",
            vocab_size=vocab_size,
            hidden_size=hidden_size,
            q_heads=q_heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            intermediate_size=hidden_size * 3,
            layers=tuple(
                LayerSpec(
                    window=window,
                    rope_theta=1e4 if window else 1e6,
                    kv_source=sources.get(index),
                )
                for index, window in enumerate(windows)
            ),
            qk_norm=qk_norm,
            attention_scale=head_dim**-0.5,
            max_context=max_context,
            eos_ids=eos_ids,
        )

    def kv_layout(self, kv_dtype: KVDtype = "float32", block_tokens: int = 64) -> Layout:
        """The layer groups whose KV is stored together: global first, then windows ascending.

        Layers that read another layer's KV are in no group. Ids count from 0 in that order.
        `int8` is codes with one fp16 scale per token and head, `float32` the values themselves.
        """
        by_window: dict[int | None, list[int]] = {}
        for index, layer in enumerate(self.layers):
            if layer.kv_source is None:
                by_window.setdefault(layer.window, []).append(index)
        width = self.kv_heads * self.head_dim
        parts = {
            "int8": (width, width, 2 * self.kv_heads, 2 * self.kv_heads),
            "float32": (4 * width, 4 * width),
        }[kv_dtype]
        windows = sorted(by_window, key=lambda window: (window is not None, window or 0))
        return Layout(
            groups=tuple(
                Group(
                    id=index,
                    layers=tuple(by_window[window]),
                    window=window,
                    parts=parts,
                )
                for index, window in enumerate(windows)
            ),
            block_tokens=block_tokens,
        )

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Every weight of the model by its Hugging Face name; linear weights are [out, in]."""
        hidden, inner = self.hidden_size, self.intermediate_size
        query, key = self.q_heads * self.head_dim, self.kv_heads * self.head_dim
        shapes: dict[str, tuple[int, ...]] = {}
        shapes["model.embed_tokens.weight"] = (self.vocab_size, hidden)
        norms = ["input_layernorm", "post_attention_layernorm"]
        if self.sandwich_norms:
            norms += ["pre_feedforward_layernorm", "post_feedforward_layernorm"]
        for index, layer in enumerate(self.layers):
            at = f"model.layers.{index}."
            shapes[f"{at}self_attn.q_proj.weight"] = (query, hidden)
            shapes[f"{at}self_attn.o_proj.weight"] = (hidden, query)
            if self.qk_norm:
                shapes[f"{at}self_attn.q_norm.weight"] = (self.head_dim,)
            if layer.kv_source is None:
                shapes[f"{at}self_attn.k_proj.weight"] = (key, hidden)
                shapes[f"{at}self_attn.v_proj.weight"] = (key, hidden)
                if self.qk_norm:
                    shapes[f"{at}self_attn.k_norm.weight"] = (self.head_dim,)
            shapes[f"{at}mlp.gate_proj.weight"] = (inner, hidden)
            shapes[f"{at}mlp.up_proj.weight"] = (inner, hidden)
            shapes[f"{at}mlp.down_proj.weight"] = (hidden, inner)
            for norm in norms:
                shapes[f"{at}{norm}.weight"] = (hidden,)
        shapes["model.norm.weight"] = (hidden,)
        if not self.tie_embeddings:
            shapes["lm_head.weight"] = (self.vocab_size, hidden)
        return shapes


class _Keys:
    """Typed reading of a parsed JSON object."""

    def __init__(self, raw: Mapping[str, object]) -> None:
        self.raw = raw

    def number(self, key: str, default: float | None = None) -> float:
        value = self.raw.get(key)
        if value is None:
            value = default
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise WeightsDamaged(f"config.json: {key} should be a number, not {value!r}")
        if not math.isfinite(value):
            raise WeightsDamaged(f"config.json: {key} should be finite, not {value!r}")
        return float(value)

    def count(self, key: str, default: int | None = None) -> int:
        value = self.number(key, default)
        if value < 1 or value != int(value):
            raise WeightsDamaged(f"config.json: {key} should be a positive integer, not {value!r}")
        return int(value)

    def ids(self, key: str) -> tuple[int, ...]:
        value = self.raw.get(key)
        values = value if isinstance(value, list) else [] if value is None else [value]
        if not all(isinstance(v, int) and not isinstance(v, bool) and v >= 0 for v in values):
            raise WeightsDamaged(f"config.json: {key} should be token ids, not {value!r}")
        return tuple(values)

    def table(self, key: str) -> _Keys | None:
        value = self.raw.get(key)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise WeightsDamaged(f"config.json: {key} should be an object, not {value!r}")
        return _Keys(value)

    def refuse(self, *keys: str) -> None:
        """Features that no code here carries out must be off."""
        for key in keys:
            if self.raw.get(key):
                raise UnsupportedModel(f"config.json: {key} = {self.raw[key]!r} is not supported")

    def activation(self, *keys: str) -> Activation:
        name = next((self.raw[key] for key in keys if self.raw.get(key) is not None), None)
        if not isinstance(name, str) or name not in _ACTIVATIONS:
            raise UnsupportedModel(f"config.json: activation {name!r} is not supported")
        return _ACTIVATIONS[name]


def _rope_kind(rope: _Keys | None) -> str:
    if rope is None:
        return "default"
    return str(rope.raw.get("rope_type") or rope.raw.get("type") or "default")


def _linear_scale(rope: _Keys | None) -> float:
    kind = _rope_kind(rope)
    if rope is None or kind == "default":
        return 1.0
    if kind == "linear":
        return rope.number("factor")
    raise UnsupportedModel(f"config.json: rope type {kind!r} is not supported")


def _layer_windows(keys: _Keys, count: int, pattern: int) -> list[bool]:
    """Whether each layer is a sliding one: `layer_types`, or every n-th layer global."""
    types = keys.raw.get("layer_types")
    if types is None:
        every = keys.count("sliding_window_pattern", pattern)
        return [bool((index + 1) % every) for index in range(count)]
    known = {"sliding_attention": True, "full_attention": False}
    if not isinstance(types, list) or len(types) != count or not all(t in known for t in types):
        raise UnsupportedModel("config.json: layer_types does not name one known type a layer")
    return [known[t] for t in types]


def _gemma3(keys: _Keys) -> ModelConfig:
    keys.refuse(
        "attention_bias",
        "attn_logit_softcapping",
        "final_logit_softcapping",
        "use_bidirectional_attention",
    )
    parameters = keys.table("rope_parameters")
    if parameters is not None and isinstance(parameters.raw.get("full_attention"), dict):
        full, local = parameters.table("full_attention"), parameters.table("sliding_attention")
        full, local = full or _Keys({}), local or _Keys({})
        theta, local_theta = full.number("rope_theta", 1e6), local.number("rope_theta", 1e4)
        scale, local_scale = _linear_scale(full), _linear_scale(local)
    else:
        theta = keys.number("rope_theta", 1e6)
        local_theta = keys.number("rope_local_base_freq", 1e4)
        scale, local_scale = _linear_scale(keys.table("rope_scaling")), 1.0
    window = keys.count("sliding_window", 4096)
    sliding = _layer_windows(keys, keys.count("num_hidden_layers"), 6)
    hidden = keys.count("hidden_size")
    tied = keys.raw.get("tie_word_embeddings")
    return ModelConfig(
        family="gemma3",
        vocab_size=keys.count("vocab_size"),
        hidden_size=hidden,
        q_heads=keys.count("num_attention_heads"),
        kv_heads=keys.count("num_key_value_heads"),
        head_dim=keys.count("head_dim", 256),
        intermediate_size=keys.count("intermediate_size"),
        layers=tuple(
            LayerSpec(window, local_theta, local_scale) if local else LayerSpec(None, theta, scale)
            for local in sliding
        ),
        activation=keys.activation("hidden_activation", "hidden_act"),
        rms_eps=keys.number("rms_norm_eps", 1e-6),
        norm_offset=1.0,
        qk_norm=True,
        sandwich_norms=True,
        embed_scale=hidden**0.5,
        attention_scale=keys.number("query_pre_attn_scalar", 256) ** -0.5,
        tie_embeddings=True if tied is None else bool(tied),
        max_context=keys.count("max_position_embeddings", 131_072),
        bos_id=next(iter(keys.ids("bos_token_id")), None),
        eos_ids=keys.ids("eos_token_id"),
    )


def _llama(keys: _Keys) -> ModelConfig:
    keys.refuse("attention_bias", "mlp_bias")
    parameters = keys.table("rope_parameters")
    rope = parameters or keys.table("rope_scaling")
    theta = (parameters or keys).number("rope_theta", 10_000.0)
    stretch = None
    if rope is not None and _rope_kind(rope) == "llama3":
        stretch = Llama3Rope(
            factor=rope.number("factor"),
            low_freq_factor=rope.number("low_freq_factor"),
            high_freq_factor=rope.number("high_freq_factor"),
            original_context=rope.count("original_max_position_embeddings"),
        )
    spec = LayerSpec(None, theta, 1.0 if stretch else _linear_scale(rope))
    hidden, q_heads = keys.count("hidden_size"), keys.count("num_attention_heads")
    head_dim = keys.count("head_dim", hidden // q_heads)
    return ModelConfig(
        family="llama",
        vocab_size=keys.count("vocab_size"),
        hidden_size=hidden,
        q_heads=q_heads,
        kv_heads=keys.count("num_key_value_heads", q_heads),
        head_dim=head_dim,
        intermediate_size=keys.count("intermediate_size"),
        layers=(spec,) * keys.count("num_hidden_layers"),
        activation=keys.activation("hidden_act"),
        rms_eps=keys.number("rms_norm_eps", 1e-6),
        attention_scale=head_dim**-0.5,
        tie_embeddings=bool(keys.raw.get("tie_word_embeddings", False)),
        llama3_rope=stretch,
        max_context=keys.count("max_position_embeddings", 2048),
        bos_id=next(iter(keys.ids("bos_token_id")), None),
        eos_ids=keys.ids("eos_token_id"),
    )
