"""The decoder in float32: what int8 is measured against, and transformers compared with."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from backends.local.kernels.pages import PAGE_TOKENS, float_views, places
from backends.local.layers import RopeTables, attend, fuse, linear, rms_norm, rotate
from backends.local.sampling import draw_rows

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor

    from backends.local.kernels.batch import Batch, Drawing
    from backends.local.kernels.pages import GroupTable
    from backends.local.layers import Layer
    from backends.local.model_config import KVDtype, ModelConfig
    from backends.local.sampling import Draw

    Project = Callable[[Tensor], Tensor]

__all__ = ["Float32Steps"]


class Float32Steps:
    """Implements `Steps`. `weights` are packed for speed; the embedding stays in use, in place."""

    kv_dtype: KVDtype = "float32"
    numerics = "float32"
    device = "cpu"
    row_budget = 1

    def __init__(self, config: ModelConfig, weights: Mapping[str, Tensor]) -> None:
        self._config = config
        self._embedding = weights["model.embed_tokens.weight"]
        head = "model.embed_tokens.weight" if config.tie_embeddings else "lm_head.weight"
        self._head = linear(weights[head])
        self._norm = weights["model.norm.weight"] + config.norm_offset
        self._layers = [
            fuse(config, weights, index, lambda parts: linear(torch.cat(list(parts))))
            for index in range(len(config.layers))
        ]
        self._ropes = RopeTables(config)
        self._places = places(config.kv_layout("float32"))

    def run(self, batch: Batch) -> Tensor:
        config = self._config
        positions = batch.positions.long()
        ropes = [
            (cos[positions].unsqueeze(1), sin[positions].unsqueeze(1))  # [T, 1, D/2]
            for cos, sin in self._ropes.upto(batch.end)
        ]
        x = F.embedding(batch.tokens, self._embedding) * config.embed_scale  # [T, hidden]
        for index, layer in enumerate(self._layers):
            h = self._attention(index, layer, x, batch, ropes[self._ropes.of(layer.spec)])
            x = x + self._normed(h, layer.after_attention)
            gate, up = layer.gate_up(self._normed(x, layer.before_mlp)).chunk(2, dim=-1)
            gate = F.silu(gate) if config.activation == "silu" else F.gelu(gate, approximate="tanh")
            x = x + self._normed(layer.down(gate * up), layer.after_mlp)
        return self._head(self._normed(x[batch.wanted.long()], self._norm))

    def draw(self, logits: Tensor, draws: Sequence[Draw | None]) -> Drawing:
        tokens = draw_rows(logits.numpy(), draws)
        return lambda: tokens

    def _normed(self, x: Tensor, weight: Tensor | None) -> Tensor:
        return x if weight is None else rms_norm(x, weight, self._config.rms_eps)

    def _attention(
        self,
        index: int,
        layer: Layer[Project],
        x: Tensor,
        batch: Batch,
        rope: tuple[Tensor, Tensor],
    ) -> Tensor:
        config, spec = self._config, layer.spec
        heads = layer.qkv(self._normed(x, layer.before_attention))
        heads = heads.view(x.shape[0], -1, config.head_dim)  # [T, Hq + 2 Hkv, D]
        rotary = config.q_heads + (config.kv_heads if spec.kv_source is None else 0)
        qk = rotate(self._normed(heads[:, :rotary], layer.qk_norm), *rope)
        group, row = self._places[index if spec.kv_source is None else spec.kv_source]
        table, starts = batch.tables[group], batch.starts.tolist()
        out = torch.empty(x.shape[0], config.q_heads, config.head_dim)
        for b, length in enumerate(batch.lengths.tolist()):
            rows = slice(starts[b], starts[b + 1])
            first = length - (rows.stop - rows.start)
            if spec.kv_source is None:
                k, v = qk[rows, config.q_heads :], heads[rows, rotary:]
                for at in range(first // PAGE_TOKENS, (length - 1) // PAGE_TOKENS + 1):
                    low, high = max(first, at * PAGE_TOKENS), min(length, (at + 1) * PAGE_TOKENS)
                    keys, values = self._page(table, row, b, at)
                    into = slice(low - at * PAGE_TOKENS, high - at * PAGE_TOKENS)
                    keys[into], values[into] = (
                        k[low - first : high - first],
                        v[low - first :][: high - low],
                    )
            reach = length if spec.window is None else spec.window
            first_page = max(0, first - reach + 1) // PAGE_TOKENS
            pages = [
                self._page(table, row, b, at)
                for at in range(first_page, (length - 1) // PAGE_TOKENS + 1)
            ]
            held = length - first_page * PAGE_TOKENS
            keys, values = (torch.cat(part)[:held] for part in zip(*pages, strict=True))
            q, scale = qk[rows, : config.q_heads], config.attention_scale
            out[rows] = attend(q, keys, values, first_page * PAGE_TOKENS, spec.window, scale)
        return layer.out(out.view(x.shape[0], -1))

    def _page(self, table: GroupTable, row: int, b: int, at: int) -> tuple[Tensor, Tensor]:
        """K and V [64, Hkv, D] of one layer in absolute page `at` of sequence b."""
        slot = int(table.slots[b, at - int(table.first_page[b])])
        return float_views(table.pages[slot], row, self._config.kv_heads, self._config.head_dim)
