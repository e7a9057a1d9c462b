"""The mathematics of one decoder layer, in plain PyTorch: norms, rotary positions, attention.

Sources: RMSNorm (Zhang and Sennrich 2019), rotary embedding (Su et al. 2021, half-split form as in
the Llama checkpoints), multi-query attention (Shazeer 2019), Llama 3's frequency stretch.
"""

from __future__ import annotations

import math
import platform
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from backends.local.model_config import Llama3Rope

__all__ = ["RopeTable", "Span", "attend", "linear", "rms_norm", "rotate"]

_QUERY_BLOCK = 256
"""Queries that share one mask on a sliding layer; bounds the keys read for each."""

_ROWS_HINT = 16
"""Rows for which oneDNN lays out a packed weight; it serves any number."""


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
        exponent = torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim
        self._inverse = _stretched(1.0 / theta**exponent, stretch) / scale
        self._cos = self._sin = torch.empty(0, head_dim // 2)

    def at(self, positions: Tensor, end: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines [T, 1, D/2] of `positions` [T], all below `end`."""
        if end > self._cos.shape[0]:
            size = max(1024, 1 << (end - 1).bit_length())
            angles = torch.outer(torch.arange(size).float(), self._inverse)
            self._cos, self._sin = angles.cos(), angles.sin()
        return self._cos[positions].unsqueeze(1), self._sin[positions].unsqueeze(1)


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
    out = torch.empty_like(x)
    half = first.shape[-1]
    torch.mul(first, cos, out=out[..., :half]).addcmul_(second, sin, value=-1)
    torch.mul(second, cos, out=out[..., half:]).addcmul_(first, sin)
    return out


@dataclass(frozen=True, slots=True)
class Span:
    """Queries [begin, end) of one chunk's T rows and the keys they read under one window.

    Keys are the absolute tokens [key_start, key_end). `mask` is None when every query sees every
    key; `causal` says that the mask is the plain triangle.
    """

    begin: int
    end: int
    key_start: int
    key_end: int
    causal: bool
    mask: Tensor | None

    @classmethod
    def cut(cls, length: int, tokens: int, window: int | None) -> tuple[Span, ...]:
        """The spans of `tokens` new rows behind `length` old ones: far keys are left out."""
        size = tokens if window is None else _QUERY_BLOCK
        return tuple(
            cls._one(length, begin, min(begin + size, tokens), window)
            for begin in range(0, tokens, size)
        )

    @classmethod
    def _one(cls, length: int, begin: int, end: int, window: int | None) -> Span:
        first, key_end = length + begin, length + end  # positions of the queries
        key_start = 0 if window is None else max(0, first - window + 1)
        rows = end - begin
        if rows == 1:
            return cls(begin, end, key_start, key_end, causal=False, mask=None)
        if key_end - key_start == rows and (window is None or rows <= window):
            return cls(begin, end, key_start, key_end, causal=True, mask=None)
        query = torch.arange(first, key_end).unsqueeze(1)
        key = torch.arange(key_start, key_end)
        seen = key <= query
        if window is not None:
            seen &= key > query - window
        mask = torch.zeros(seen.shape).masked_fill_(~seen, -torch.inf)
        return cls(begin, end, key_start, key_end, causal=False, mask=mask)


def attend(q: Tensor, k: Tensor, v: Tensor, span: Span, scale: float) -> Tensor:
    """Attention of one span. q: [T, Hq, D]; k, v: [S, Hkv, D]; returns [T, Hq, D].

    The KV heads are the batch and their query heads the heads, so that one KV head serves its
    group of queries without being copied.
    """
    tokens, q_heads, dim = q.shape
    kv_heads = k.shape[1]
    group = q_heads // kv_heads
    if tokens == 1:
        # All queries of a group read the same keys: they are the rows of one tile.
        grouped = q.view(1, kv_heads, group, dim)
        k, v = k.transpose(0, 1).unsqueeze(0), v.transpose(0, 1).unsqueeze(0)  # [1, Hkv, S, D]
        return F.scaled_dot_product_attention(grouped, k, v, scale=scale).view(1, q_heads, dim)
    queries = q.view(tokens, kv_heads, group, dim).permute(1, 2, 0, 3)  # [Hkv, G, T, D]
    shape = (kv_heads, group, k.shape[0], dim)
    out = F.scaled_dot_product_attention(
        queries,
        k.transpose(0, 1).unsqueeze(1).expand(shape),
        v.transpose(0, 1).unsqueeze(1).expand(shape),
        attn_mask=span.mask,
        is_causal=span.causal,
        scale=scale,
    )
    return out.permute(2, 0, 1, 3).reshape(tokens, q_heads, dim)
