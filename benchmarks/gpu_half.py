"""A plain half-precision decoder as of 2022, in PyTorch: what the ladder's lower rungs run.

Static batches: every sequence of a batch is as long as the others, and its KV has room for the
longest reply. Attention is PyTorch's own FlashAttention-2 operator, which packs the query heads of
one KV head at decode and takes sliding windows; the work between matrix products is fused by
torch.compile; a decode step is one CUDA graph. On a CPU the same arithmetic runs without these.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ParamSpec, TypeVar

import torch
import torch.nn.functional as F

from backends.local.layers import RopeTables
from backends.local.synthetic import kv_bytes

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from backends.local.layers import Layer
    from backends.local.model_config import LayerSpec, ModelConfig
    from backends.local.synthetic import HalfModel

__all__ = ["HalfDecoder"]

P = ParamSpec("P")
R = TypeVar("R")


def _norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    wide = x.float()
    scaled = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight
    return scaled.to(x.dtype)


def _add_norm(x: Tensor, h: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The residual stream with `h` added, and its norm."""
    total = x + h
    return total, _norm(total, weight, eps)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x: [..., H, D]; cos, sin: [..., 1, D/2] float32."""
    first, second = x.float().chunk(2, dim=-1)
    turned = torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
    return turned.to(x.dtype)


def _gated(h: Tensor) -> Tensor:
    gate, up = h.chunk(2, dim=-1)
    return (F.silu(gate.float()) * up.float()).to(h.dtype)


class HalfDecoder:
    """Runs a `HalfModel` of the synthetic family over a KV cache of `batch` rows.

    A row holds `capacity` tokens of every global layer and the window, as a ring, of the others.
    Raises `ValueError` for a model with norms that the synthetic family lacks.
    """

    def __init__(self, model: HalfModel, batch: int, capacity: int) -> None:
        config = model.config
        if config.sandwich_norms or config.qk_norm or config.activation != "silu":
            raise ValueError(f"{config.family} models have norms or gates that this one lacks")
        self.config = config
        self._model = model
        self._device, self._dtype = model.embedding.device, model.embedding.dtype
        self._on_gpu = self._device.type == "cuda"
        self._ropes = RopeTables(config)
        self._cos, self._sin = self._rope_tables(capacity)
        self._cache: dict[int, tuple[Tensor, Tensor]] = {}
        for at, spec in enumerate(config.layers):
            if spec.kv_source is None:
                held = min(capacity, spec.window or capacity)
                shape = (batch, held, config.kv_heads, config.head_dim)
                k, v = (torch.empty(shape, dtype=self._dtype, device=self._device) for _ in "kv")
                self._cache[at] = (k, v)
        self.norm, self.add_norm = self._fused(_norm), self._fused(_add_norm)
        self.rotate, self.gated = self._fused(_rotate), self._fused(_gated)

    @staticmethod
    def bytes_each(config: ModelConfig, capacity: int) -> int:
        """KV bytes of one row."""
        return kv_bytes(config, capacity, value_bytes=2)

    def fill(self) -> None:
        """Puts random KV everywhere, so that decode can be timed without a prefill of all rows."""
        for k, v in self._cache.values():
            k.normal_()
            v.normal_()

    @torch.inference_mode()
    def prefill(self, tokens: Tensor, row: int) -> Tensor:
        """A whole prompt [T] from position 0 into one row; returns logits [V] of its last token."""
        count = len(tokens)

        def attend(at: int, spec: LayerSpec, q: Tensor, fresh: tuple[Tensor, Tensor]) -> Tensor:
            k, v = fresh
            if spec.kv_source is None:
                for cache, new in zip(self._cache[at], fresh, strict=True):
                    held = cache.shape[1]
                    first = max(0, count - held)
                    where = torch.arange(first, count, device=self._device) % held
                    cache[row, where] = new[first:]
            return self._flash(q[None], k[None], v[None], causal=True, window=spec.window)[0]

        rope = (self._cos[:, :count], self._sin[:, :count])
        x = self._layers(tokens, rope, attend)
        return self._head(x[-1:])[0]

    @torch.inference_mode()
    def decode(self, tokens: Tensor, position: int) -> Tensor:
        """One token [B] of each of the first B rows, all at `position`; returns logits [B, V]."""
        batch = len(tokens)

        def attend(at: int, spec: LayerSpec, q: Tensor, fresh: tuple[Tensor, Tensor]) -> Tensor:
            source = at if spec.kv_source is None else spec.kv_source
            caches = self._cache[source]
            held = caches[0].shape[1]
            if spec.kv_source is None:
                for cache, new in zip(caches, fresh, strict=True):
                    cache[:batch, position % held] = new
            k, v = (cache[:batch, : min(position + 1, held)] for cache in caches)
            return self._flash(q[:, None], k, v, causal=False, window=None)[:, 0]

        here = slice(position, position + 1)
        x = self._layers(tokens, (self._cos[:, here], self._sin[:, here]), attend)
        return self._head(x)

    def greedy_step(self, batch: int, position: int) -> Callable[[], None]:
        """A decode step with its argmax as one replayable CUDA graph (on a CPU: a plain call)."""
        tokens = torch.zeros(batch, dtype=torch.long, device=self._device)

        def step() -> None:
            with torch.inference_mode():
                tokens.copy_(self.decode(tokens, position).argmax(-1))

        if not self._on_gpu:
            return step
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(2):
                step()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()
        return graph.replay

    def _layers(
        self,
        tokens: Tensor,
        rope: tuple[Tensor, Tensor],
        attend: Callable[[int, LayerSpec, Tensor, tuple[Tensor, Tensor]], Tensor],
    ) -> Tensor:
        """All layers over rows [T, hidden]; `attend` gets queries [T, Hq, D] and the layer's KV."""
        model, eps = self._model, self.config.rms_eps
        x = F.embedding(tokens, model.embedding) * self.config.embed_scale
        normed = self.norm(x, model.layers[0].before_attention, eps)
        fresh: dict[int, tuple[Tensor, Tensor]] = {}
        for at, layer in enumerate(model.layers):
            q = self._heads(at, layer, normed, rope, fresh)
            source = at if layer.spec.kv_source is None else layer.spec.kv_source
            h = F.linear(attend(at, layer.spec, q, fresh[source]).flatten(1), layer.out)
            x, normed = self.add_norm(x, h, layer.before_mlp, eps)
            h = F.linear(self.gated(F.linear(normed, layer.gate_up)), layer.down)
            last = at + 1 == len(model.layers)
            weight = model.norm if last else model.layers[at + 1].before_attention
            x, normed = self.add_norm(x, h, weight, eps)
        return normed

    def _heads(
        self,
        at: int,
        layer: Layer[Tensor],
        normed: Tensor,
        rope: tuple[Tensor, Tensor],
        fresh: dict[int, tuple[Tensor, Tensor]],
    ) -> Tensor:
        """The rotated queries [T, Hq, D]; puts the layer's own K and V into `fresh`."""
        config = self.config
        table = self._ropes.of(layer.spec)
        cos, sin = (part[table].unsqueeze(1) for part in rope)  # [T or 1, 1, D/2]
        heads = F.linear(normed, layer.qkv)
        heads = heads.view(len(heads), -1, config.head_dim)  # [T, Hq + 2 Hkv, D]
        if layer.spec.kv_source is not None:
            return self.rotate(heads, cos, sin)
        rotated = self.rotate(heads[:, : -config.kv_heads], cos, sin)
        fresh[at] = rotated[:, config.q_heads :], heads[:, -config.kv_heads :]
        return rotated[:, : config.q_heads]

    def _head(self, x: Tensor) -> Tensor:
        return F.linear(x, self._model.embedding)

    def _flash(
        self, q: Tensor, k: Tensor, v: Tensor, *, causal: bool, window: int | None
    ) -> Tensor:
        """q: [B, T, Hq, D]; k, v: [B, S, Hkv, D]; returns [B, T, Hq, D]."""
        scale = self.config.attention_scale
        if self._on_gpu:
            left = None if window is None else window - 1
            out: Tensor = torch.ops.aten._flash_attention_forward(
                *(q, k, v, None, None, q.shape[1], k.shape[1], 0.0, causal, False),
                scale=scale,
                window_size_left=left,
                window_size_right=None if left is None else 0,
            )[0]
            return out
        mask = None
        if causal:
            at = torch.arange(q.shape[1])
            mask = at <= at[:, None]
            if window is not None:
                mask &= at > at[:, None] - window
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale, enable_gqa=True)
        return out.transpose(1, 2)

    def _rope_tables(self, end: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines [tables, P, D/2] float32."""
        tables = self._ropes.upto(end)
        cos, sin = (torch.stack([table[part] for table in tables]) for part in (0, 1))
        return cos.to(self._device), sin.to(self._device)

    def _fused(self, function: Callable[P, R]) -> Callable[P, R]:
        if not self._on_gpu:
            return function
        fused: Callable[P, R] = torch.compile(function, dynamic=True)
        return fused
