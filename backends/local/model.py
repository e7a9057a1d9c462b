"""Our own decoder: one forward pass over any mix of prefill chunks and decodes.

The tokens of all chunks are laid in one `[T, hidden]` for the linear layers; attention runs chunk
by chunk over that sequence's own KV. Weights are float32 and inference is all it does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from backends.local.layers import RopeTable, Span, attend, linear, rms_norm, rotate

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor

    from backends.local.cache import SequenceKV
    from backends.local.model_config import LayerSpec, ModelConfig

__all__ = ["Chunk", "Decoder"]


@dataclass(frozen=True, slots=True)
class Chunk:
    """The next tokens ([T] int64, T >= 1) of a sequence: positions kv.length onwards."""

    kv: SequenceKV
    tokens: Tensor


@dataclass(frozen=True, slots=True)
class _Layer:
    """One layer, fused: `qkv` gives [T, (Hq + 2 Hkv) D], `gate_up` [T, 2 I].

    A layer that reads another's KV has only the queries in `qkv`. `qk_norm` is [heads, D].
    """

    spec: LayerSpec
    qkv: Callable[[Tensor], Tensor]
    out: Callable[[Tensor], Tensor]
    gate_up: Callable[[Tensor], Tensor]
    down: Callable[[Tensor], Tensor]
    before_attention: Tensor
    before_mlp: Tensor
    qk_norm: Tensor | None
    after_attention: Tensor | None
    after_mlp: Tensor | None


@dataclass(frozen=True, slots=True)
class _Row:
    """One chunk's rows [begin, end) of the flattened batch and its spans by window."""

    kv: SequenceKV
    begin: int
    end: int
    spans: dict[int | None, tuple[Span, ...]]


class Decoder:
    """A decoder with its weights.

    `weights` are float32 tensors under the names and shapes of `config.tensor_shapes()`;
    `backends.local.checkpoint` checks a file against them. They are packed for speed; of the
    originals only the embedding stays in use, in place.
    """

    @torch.inference_mode()
    def __init__(self, config: ModelConfig, weights: Mapping[str, Tensor]) -> None:
        self.config = config
        self._embedding = weights["model.embed_tokens.weight"]
        head = "model.embed_tokens.weight" if config.tie_embeddings else "lm_head.weight"
        self._head = linear(weights[head])
        self._norm = weights["model.norm.weight"] + config.norm_offset
        self._layers = [_fuse(config, weights, index) for index in range(len(config.layers))]
        self._ropes = {
            (spec.rope_theta, spec.rope_scale): RopeTable(
                config.head_dim, spec.rope_theta, spec.rope_scale, config.llama3_rope
            )
            for spec in config.layers
        }

    @classmethod
    def random(cls, config: ModelConfig, seed: int) -> Decoder:
        """A decoder with weights drawn from `seed`: for tests and benchmarks."""
        return cls(config, random_weights(config, seed))

    @torch.inference_mode()
    def forward(self, chunks: Sequence[Chunk]) -> Tensor:
        """Runs the chunks' tokens through the model; returns float32 logits [len(chunks), vocab].

        Row i belongs to the last token of chunk i. Appends K and V to every chunk's `kv` and
        advances its length. Each `kv` may occur once. Raises `ValueError` for an empty chunk.
        """
        rows, tokens, positions = self._lay_out(chunks)
        last_position = max(row.kv.length + row.end - row.begin for row in rows)
        ropes = {key: table.at(positions, last_position) for key, table in self._ropes.items()}

        x = F.embedding(tokens, self._embedding)  # [T, hidden]
        if self.config.embed_scale != 1.0:
            x = x * self.config.embed_scale
        for index, layer in enumerate(self._layers):
            spec = layer.spec
            x = self._layer(index, layer, x, rows, ropes[spec.rope_theta, spec.rope_scale])
        for row in rows:
            row.kv.advance(row.end - row.begin)
        last = x[torch.tensor([row.end - 1 for row in rows])]  # [chunks, hidden]
        return self._head(rms_norm(last, self._norm, self.config.rms_eps))

    def _lay_out(self, chunks: Sequence[Chunk]) -> tuple[list[_Row], Tensor, Tensor]:
        windows = {spec.window for spec in self.config.layers}
        rows: list[_Row] = []
        positions: list[Tensor] = []
        at = 0
        for chunk in chunks:
            count = chunk.tokens.shape[0]
            if not count:
                raise ValueError("a chunk needs at least one token")
            chunk.kv.reserve(count)
            length = chunk.kv.length
            spans = {window: Span.cut(length, count, window) for window in windows}
            rows.append(_Row(chunk.kv, at, at + count, spans))
            positions.append(torch.arange(length, length + count))
            at += count
        return rows, torch.cat([chunk.tokens for chunk in chunks]), torch.cat(positions)

    def _layer(
        self, index: int, layer: _Layer, x: Tensor, rows: list[_Row], rope: tuple[Tensor, Tensor]
    ) -> Tensor:
        eps = self.config.rms_eps
        h = self._attention(index, layer, rms_norm(x, layer.before_attention, eps), rows, rope)
        if layer.after_attention is not None:
            h = rms_norm(h, layer.after_attention, eps)
        x = x + h
        gate, up = layer.gate_up(rms_norm(x, layer.before_mlp, eps)).chunk(2, dim=-1)
        if self.config.activation == "silu":
            gate = F.silu(gate)
        else:
            gate = F.gelu(gate, approximate="tanh")
        h = layer.down(gate.mul_(up))
        if layer.after_mlp is not None:
            h = rms_norm(h, layer.after_mlp, eps)
        return x.add_(h)

    def _attention(
        self, index: int, layer: _Layer, x: Tensor, rows: list[_Row], rope: tuple[Tensor, Tensor]
    ) -> Tensor:
        config, spec = self.config, layer.spec
        heads = layer.qkv(x).view(x.shape[0], -1, config.head_dim)  # [T, Hq + 2 Hkv, D]
        rotary = config.q_heads + (config.kv_heads if spec.kv_source is None else 0)
        qk = heads[:, :rotary]
        if layer.qk_norm is not None:
            qk = rms_norm(qk, layer.qk_norm, config.rms_eps)
        qk = rotate(qk, *rope)
        q, k, v = qk[:, : config.q_heads], qk[:, config.q_heads :], heads[:, rotary:]

        out = torch.empty(q.shape)
        source = index if spec.kv_source is None else spec.kv_source
        for row in rows:
            if spec.kv_source is None:
                row.kv.write(index, k[row.begin : row.end], v[row.begin : row.end])
            for span in row.spans[spec.window]:
                keys, values = row.kv.read(source, span.key_start, span.key_end)
                at = slice(row.begin + span.begin, row.begin + span.end)
                out[at] = attend(q[at], keys, values, span, config.attention_scale)
        return layer.out(out.view(x.shape[0], -1))


def _fuse(config: ModelConfig, weights: Mapping[str, Tensor], index: int) -> _Layer:
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
    return _Layer(
        spec=spec,
        qkv=linear(torch.cat([weight(f"self_attn.{part}") for part in parts])),
        out=linear(weight("self_attn.o_proj")),
        gate_up=linear(torch.cat([weight("mlp.gate_proj"), weight("mlp.up_proj")])),
        down=linear(weight("mlp.down_proj")),
        before_attention=norm("input_layernorm"),
        # Llama's "post_attention" norm is the one before the MLP; Gemma has one of each.
        before_mlp=norm("pre_feedforward_layernorm" if sandwich else "post_attention_layernorm"),
        qk_norm=qk_norm,
        after_attention=norm("post_attention_layernorm") if sandwich else None,
        after_mlp=norm("post_feedforward_layernorm") if sandwich else None,
    )


def random_weights(config: ModelConfig, seed: int) -> dict[str, Tensor]:
    """Weights for `config` drawn from `seed`, scaled so that activations stay near one."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in config.tensor_shapes().items():
        drawn = torch.randn(shape, generator=generator)
        if len(shape) == 1:
            weights[name] = 1.0 - config.norm_offset + 0.1 * drawn
        else:
            weights[name] = drawn / math.sqrt(shape[1])
    return weights
