"""The parts of a decoder in plain float32 PyTorch: rotary tables, norms, linear layers, attention.

Sources: RMSNorm (Zhang and Sennrich 2019), rotary embedding (Su et al. 2021, half-split form as in
the Llama checkpoints), multi-query attention (Shazeer 2019), Llama 3's frequency stretch.
"""

from __future__ import annotations

import math
import platform
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor

    from backends.local.model_config import LayerSpec, Llama3Rope, ModelConfig

__all__ = ["Layer", "RopeTable", "RopeTables", "attend", "fuse", "linear", "rms_norm", "rotate"]

L = TypeVar("L")

_ROWS_HINT = 16
"""Rows for which oneDNN lays out a packed weight; it serves any number."""


@dataclass(frozen=True, slots=True)
class Layer(Generic[L]):
    """One layer with its linear layers, each an L, those of one input fused.

    `qkv` gives [T, (Hq + 2 Hkv) D], or the queries alone where the layer reads another's KV;
    `gate_up` gives [T, 2 I], the gate first. Norm weights are float32 with the model's offset
    added; `qk_norm` is [heads, D]; None where the model has no such norm.
    """

    spec: LayerSpec
    qkv: L
    out: L
    gate_up: L
    down: L
    before_attention: Tensor
    before_mlp: Tensor
    qk_norm: Tensor | None
    after_attention: Tensor | None
    after_mlp: Tensor | None


def fuse(
    config: ModelConfig,
    weights: Mapping[str, Tensor],
    index: int,
    make: Callable[[Sequence[Tensor]], L],
) -> Layer[L]:
    """Layer `index` of the model; `make` turns weights [out, in], to be stacked, into an L."""
    spec = config.layers[index]
    owns = spec.kv_source is None

    def weight(name: str) -> Tensor:
        return weights[f"model.layers.{index}.{name}.weight"]

    def norm(name: str) -> Tensor:
        return weight(name) + config.norm_offset

    parts = ("q_proj", "k_proj", "v_proj") if owns else ("q_proj",)
    qk_norm = None
    if config.qk_norm:
        qk = [norm("self_attn.q_norm").expand(config.q_heads, -1)]
        if owns:
            qk.append(norm("self_attn.k_norm").expand(config.kv_heads, -1))
        qk_norm = torch.cat(qk)
    sandwich = config.sandwich_norms
    return Layer(
        spec=spec,
        qkv=make([weight(f"self_attn.{part}") for part in parts]),
        out=make([weight("self_attn.o_proj")]),
        gate_up=make([weight("mlp.gate_proj"), weight("mlp.up_proj")]),
        down=make([weight("mlp.down_proj")]),
        before_attention=norm("input_layernorm"),
        # Llama's "post_attention" norm is the one before the MLP; Gemma has one of each.
        before_mlp=norm("pre_feedforward_layernorm" if sandwich else "post_attention_layernorm"),
        qk_norm=qk_norm,
        after_attention=norm("post_attention_layernorm") if sandwich else None,
        after_mlp=norm("post_feedforward_layernorm") if sandwich else None,
    )


def linear(weight: Tensor) -> Callable[[Tensor], Tensor]:
    """x @ weight.T as a function. weight: [out, in], x: [T, in]; returns [T, out].

    On x86 a copy of the weight is packed for oneDNN, which for 1 to 16 rows is two to four times
    as fast as the MKL call behind `F.linear` (measured on AMD EPYC, AVX2) and no slower above.
    """
    x86 = platform.machine() in ("x86_64", "AMD64")
    if not x86 or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return lambda x: F.linear(x, weight)
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, _ROWS_HINT)
    product = torch.ops.mkldnn._linear_pointwise.default

    def call(x: Tensor) -> Tensor:
        result: Tensor = product(x, packed, None, "none", [], "")
        return result

    return call


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / rms(x) * weight over the last dimension. x: [..., D]; weight: [D] or [H, D]."""
    if weight.dim() == 1:
        return F.rms_norm(x, weight.shape, weight, eps)
    return F.rms_norm(x, weight.shape[-1:], None, eps).mul_(weight)


class RopeTable:
    """Cosines and sines of one rotary base, made up to the furthest position seen."""

    def __init__(
        self, head_dim: int, theta: float, scale: float, stretch: Llama3Rope | None
    ) -> None:
        exponent = torch.arange(0, head_dim, 2).double() / head_dim
        self._inverse = _stretched((1.0 / theta**exponent).float(), stretch) / scale
        self._cos = self._sin = torch.empty(0, head_dim // 2)

    def upto(self, end: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines [P, D/2] of the positions below P >= `end`.

        Angles are float32, as in transformers; their cosines are taken in float64 and rounded,
        so that a position's row is the same in a table of any size, on any machine.
        """
        if end > self._cos.shape[0]:
            size = max(1024, 1 << (end - 1).bit_length())
            angles = torch.outer(torch.arange(size).float(), self._inverse).double()
            self._cos, self._sin = angles.cos().float(), angles.sin().float()
        return self._cos, self._sin


class RopeTables:
    """The rotary tables of a model's layers; layers with equal bases share one."""

    def __init__(self, config: ModelConfig) -> None:
        keys = list(dict.fromkeys((spec.rope_theta, spec.rope_scale) for spec in config.layers))
        self.index = {key: at for at, key in enumerate(keys)}
        self._tables = [RopeTable(config.head_dim, *key, config.llama3_rope) for key in keys]

    def of(self, spec: LayerSpec) -> int:
        """The number of a layer's table."""
        return self.index[spec.rope_theta, spec.rope_scale]

    def upto(self, end: int) -> list[tuple[Tensor, Tensor]]:
        """Every table's cosines and sines, by number; see `RopeTable.upto`."""
        return [table.upto(end) for table in self._tables]


def _stretched(inverse: Tensor, stretch: Llama3Rope | None) -> Tensor:
    if stretch is None:
        return inverse
    turns = stretch.original_context * inverse / (2 * math.pi)  # over the original context
    low, high = stretch.low_freq_factor, stretch.high_freq_factor
    keep = ((turns - low) / (high - low)).clamp(0.0, 1.0)
    return keep * inverse + (1 - keep) * inverse / stretch.factor


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates the two halves of each head. x: [T, H, D]; cos, sin: [T, 1, D/2]."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def attend(q: Tensor, k: Tensor, v: Tensor, first: int, window: int | None, scale: float) -> Tensor:
    """Attention of one sequence's newest tokens. q: [T, Hq, D]; returns [T, Hq, D].

    k, v: [S, Hkv, D] of the tokens from absolute position `first` on; the last of them is the
    last query's own. The KV heads are the batch and their query heads the heads.
    """
    tokens, q_heads, dim = q.shape
    keys, kv_heads = k.shape[:2]
    key = torch.arange(first, first + keys)
    query = key[-tokens:].unsqueeze(1)
    seen = key <= query
    if window is not None:
        seen &= key > query - window
    shape = (kv_heads, q_heads // kv_heads, keys, dim)
    out = F.scaled_dot_product_attention(
        q.view(tokens, kv_heads, -1, dim).permute(1, 2, 0, 3),  # [Hkv, G, T, D]
        k.transpose(0, 1).unsqueeze(1).expand(shape),
        v.transpose(0, 1).unsqueeze(1).expand(shape),
        attn_mask=seen,
        scale=scale,
    )
    return out.permute(2, 0, 1, 3).reshape(tokens, q_heads, dim)
