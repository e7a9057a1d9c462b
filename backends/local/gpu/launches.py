"""One step of the int8 decoder as a run of kernel launches, in the order of `Int8Steps.run`.

Eleven a layer: product, heads, attention (spans, merge, codes), product, norm, product, gate,
product, norm; one more where there are chunks. Each may begin while the one before ends (`chain`).
On Hopper CUDA kernels take the place of some (`hopper`).

What a launch is cut into changes no bit. Here it is reckoned for an H100 and its compiler: the
attention kernels' tiles are the largest whose scores stay in registers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton

from backends.local.gpu import attention, greedy, rows
from backends.local.gpu.gemm import linear_logits, linear_sums, tiles_for
from backends.local.gpu.scratch import LayerPages, Residual, spans_read
from backends.local.kernels.pages import int8_row_bytes, places

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from backends.local.gpu.scratch import Scratch
    from backends.local.gpu.shapes import Numbers
    from backends.local.layers import Layer
    from backends.local.quantize import QuantLinear, QuantModel

__all__ = ["Launches"]

_DECODE_REGISTERS = 168  # a thread: three programs of 128 threads on a multiprocessor
_SMALLEST_DIM = 32  # of a tensor core's int8 product


class Launches:
    """The launches of one model's steps, all of them Triton's.

    `packed`: kernels may use assembly; `chained`: a launch may begin before the one before ends.
    """

    def __init__(self, model: QuantModel, *, packed: bool, chained: bool = False) -> None:
        config = model.config
        self._model = model
        self._packed = packed
        self._chained = chained
        self._all = {"enable_fp_fusion": False, "CHAINED": chained, "launch_pdl": chained}
        layout = config.kv_layout("int8")
        self._places = places(layout)
        self.windows = [group.window for group in layout.groups]
        group = config.q_heads // config.kv_heads
        dim = max(_SMALLEST_DIM, triton.next_power_of_2(config.head_dim))
        self._sizes = {"KV_HEADS": config.kv_heads, "G": group, "D": config.head_dim, "SIZE": dim}
        self._g_power = triton.next_power_of_2(group)
        self._piece = max(dim // 2, min(128, dim))
        self._wide_heads = dim > 128
        tile_rows = 32 if self._wide_heads else 128  # queries times heads in a tile of prefill
        self.tile_tokens = max(1, tile_rows // self._g_power)
        self._norm = {
            "EPS": config.rms_eps,
            "N": config.hidden_size,
            "SIZE": triton.next_power_of_2(config.hidden_size),
            "LEVELS": _levels(config.hidden_size),
            **self._all,
        }

    def step(
        self,
        numbers: Numbers,
        pages: Sequence[Tensor],
        scratch: Scratch,
        ropes: Sequence[tuple[Tensor, Tensor]],
    ) -> None:
        """Launches everything on the current stream; `ropes`: cosines and sines by layer."""
        model, config, shape = self._model, self._model.config, numbers.shape
        s, tokens = scratch, shape.tokens
        plane = s.digits.stride(0)
        ins, outs = s.scales
        layers = model.layers
        rows.embed_and_norm[(tokens,)](
            numbers["tokens"],
            model.embedding.codes,
            model.embedding.scale,
            model.embed_factor,
            s.x,
            layers[0].before_attention,
            s.digits,
            ins,
            plane,
            MAX_CODE=layers[0].qkv.max_code,
            num_warps=_norm_warps(config.hidden_size, tokens),
            **self._norm,
        )
        for index, layer in enumerate(layers):
            self._attention(index, layer, numbers, pages, s, ins, outs, ropes[index])
            ins, outs = outs, ins
            splits = self._product(s, tokens, layer.out)
            self._residual(
                numbers,
                s,
                Residual(
                    linear=layer.out,
                    splits=splits,
                    after=layer.after_attention,
                    weight=layer.before_mlp,
                    max_code=layer.gate_up.max_code,
                    ins=ins,
                    outs=outs,
                    last=False,
                ),
            )
            ins, outs = outs, ins
            self._gate(s, tokens, layer, ins, outs)
            ins, outs = outs, ins
            splits = self._product(s, tokens, layer.down)
            last = index + 1 == len(layers)
            self._residual(
                numbers,
                s,
                Residual(
                    linear=layer.down,
                    splits=splits,
                    after=layer.after_mlp,
                    weight=model.norm if last else layers[index + 1].before_attention,
                    max_code=(model.head if last else layers[index + 1].qkv).max_code,
                    ins=ins,
                    outs=outs,
                    last=last,
                ),
            )
            ins, outs = outs, ins
        tiles = tiles_for(shape.wanted, model.head, split=False)
        linear_logits(
            s.digits, ins, shape.wanted, model.head, s.logits, tiles, chained=self._chained
        )
        logits = s.logits[: shape.wanted * config.vocab_size].view(shape.wanted, -1)
        greedy.argmax(logits, s.top, s.best)

    def sums_needed(self, tokens: int) -> int:
        """Partial sums of the largest product of `tokens` rows."""
        return max(
            tokens * len(linear.scale) * self._splits(tokens, linear)
            for layer in self._model.layers
            for linear in (layer.qkv, layer.out, layer.gate_up, layer.down)
        )

    def _splits(self, tokens: int, linear: QuantLinear) -> int:
        return tiles_for(tokens, linear).splits

    def _product(self, s: Scratch, tokens: int, linear: QuantLinear) -> int:
        """Partial sums of a product; how many."""
        tiles = tiles_for(tokens, linear)
        return linear_sums(s.digits, tokens, linear, s.sums, tiles, chained=self._chained)

    def _gate(
        self, s: Scratch, tokens: int, layer: Layer[QuantLinear], ins: Tensor, outs: Tensor
    ) -> None:
        """The digits of act(gate) * up."""
        linear, max_code, config = layer.gate_up, layer.down.max_code, self._model.config
        inner = config.intermediate_size
        splits = self._product(s, tokens, linear)
        rows.gate_rows[(tokens,)](
            s.sums,
            ins,
            linear.scale,
            s.digits,
            outs,
            tokens,
            s.digits.stride(0),
            SPLITS=splits,
            GELU=config.activation == "gelu_tanh",
            N=inner,
            SIZE=triton.next_power_of_2(inner),
            MAX_CODE=max_code,
            num_warps=_gate_warps(inner, tokens),
            **self._all,
        )

    def _residual(self, numbers: Numbers, s: Scratch, r: Residual) -> None:
        """Adds the normed product to the residual stream; the digits of its norm."""
        shape = numbers.shape
        count = shape.wanted if r.last else shape.tokens
        rows.add_and_norm[(count,)](
            s.sums,
            r.ins,
            r.linear.scale,
            r.weight if r.after is None else r.after,
            s.x,
            r.weight,
            numbers["wanted"],
            s.digits,
            r.outs,
            shape.tokens,
            s.digits.stride(0),
            SPLITS=r.splits,
            AFTER=r.after is not None,
            GATHER=r.last,
            MAX_CODE=r.max_code,
            num_warps=_norm_warps(self._model.config.hidden_size, count),
            **self._norm,
        )

    def _attention(
        self,
        index: int,
        layer: Layer[QuantLinear],
        numbers: Numbers,
        pages: Sequence[Tensor],
        s: Scratch,
        ins: Tensor,
        outs: Tensor,
        rope: tuple[Tensor, Tensor],
    ) -> None:
        """From the digits of the norm to those of what was attended."""
        config, spec = self._model.config, layer.spec
        group, row = self._places[index if spec.kv_source is None else spec.kv_source]
        width = numbers.shape.widths[group]
        kv = LayerPages(
            slots=numbers[f"slots{group}"],
            first_page=numbers[f"first_page{group}"],
            codes=pages[group].view(torch.int8),
            width=width,
            row_bytes=row * int8_row_bytes(config.kv_heads, config.head_dim),
            window=spec.window or 0,
            reads=spans_read(spec.window, width),
        )
        self._heads(layer, numbers, s, ins, rope, kv)
        self._spans(numbers, s, kv)
        self._merge(numbers, s, kv, outs, layer.out.max_code)

    def _heads(
        self,
        layer: Layer[QuantLinear],
        numbers: Numbers,
        s: Scratch,
        ins: Tensor,
        rope: tuple[Tensor, Tensor],
        kv: LayerPages,
    ) -> None:
        """Queries' codes, and keys and values in their pages."""
        config, tokens = self._model.config, numbers.shape.tokens
        splits = self._product(s, tokens, layer.qkv)
        heads = config.q_heads + (2 * config.kv_heads if layer.spec.kv_source is None else 0)
        rows.split_heads[(tokens, heads)](
            s.sums,
            ins,
            layer.qkv.scale,
            layer.before_attention if layer.qk_norm is None else layer.qk_norm,
            *rope,
            numbers["positions"],
            numbers["owners"],
            *kv.tensors[:2],
            s.q_codes,
            s.q_scale,
            *kv.tensors[2:],
            tokens,
            *kv.sizes,
            SCALE=config.attention_scale,
            SPLITS=splits,
            NORM=layer.qk_norm is not None,
            EPS=config.rms_eps,
            HEADS=heads,
            Q_HEADS=config.q_heads,
            KV_HEADS=config.kv_heads,
            D=config.head_dim,
            SIZE=triton.next_power_of_2(config.head_dim),
            LEVELS=_levels(config.head_dim),
            num_warps=1,
            **self._all,
        )

    def _spans(self, numbers: Numbers, s: Scratch, kv: LayerPages) -> None:
        """Every span's own result, of sequences that have one new token."""
        kv_heads = self._sizes["KV_HEADS"]
        groups = triton.cdiv(self._sizes["G"], attention.DECODE_HEADS)
        attention.decode_spans[(numbers.shape.sequences, kv_heads * groups, kv.reads)](
            s.q_codes,
            s.q_scale,
            numbers["starts"],
            numbers["lengths"],
            *kv.tensors,
            s.tops,
            s.totals,
            s.outs,
            *kv.sizes,
            WINDOW=kv.window,
            P=kv.reads,
            PIECE=self._piece,
            ROWS=attention.DECODE_HEADS,
            PACKED=self._packed,
            num_warps=4,
            maxnreg=_DECODE_REGISTERS,
            **self._sizes,
            **self._all,
        )

    def _merge(
        self, numbers: Numbers, s: Scratch, kv: LayerPages, outs: Tensor, max_code: int
    ) -> None:
        """Spans folded, chunks attended, and the digits of both."""
        config, shape, sizes = self._model.config, numbers.shape, self._sizes
        attention.merge_spans[(shape.sequences, config.q_heads)](
            s.tops,
            s.totals,
            s.outs,
            numbers["starts"],
            numbers["lengths"],
            s.attended,
            WINDOW=kv.window,
            UNROLL=8,
            P=kv.reads,
            G=sizes["G"],
            D=sizes["D"],
            SIZE=sizes["SIZE"],
            num_warps=1,
            **self._all,
        )
        if shape.tiles:
            attention.attend_chunks[(shape.tiles, config.kv_heads)](
                s.q_codes,
                s.q_scale,
                numbers["starts"],
                numbers["lengths"],
                numbers["tile_owner"],
                numbers["tile_first"],
                *kv.tensors,
                s.attended,
                *kv.sizes,
                WINDOW=kv.window,
                TOKENS=self.tile_tokens,
                HEADS=self._g_power,
                PIECE=self._piece,
                PACKED=self._packed,
                num_warps=8,
                num_stages=1 if self._wide_heads else 2,
                **sizes,
                **self._all,
            )
        inner = config.q_heads * config.head_dim
        rows.quantize_rows[(shape.tokens,)](
            s.attended,
            s.digits,
            outs,
            s.digits.stride(0),
            N=inner,
            SIZE=triton.next_power_of_2(inner),
            MAX_CODE=max_code,
            num_warps=_warps(inner),
            **self._all,
        )


def _levels(count: int) -> int:
    return (count - 1).bit_length()


def _warps(row: int) -> int:
    """Warps for a program that holds a row of so many numbers."""
    size: int = triton.next_power_of_2(row)
    return min(16, max(1, size // 512))


def _gate_warps(row: int, rows: int) -> int:
    """Warps for a gate: twice as many where few rows wait for it."""
    return _warps(row) if rows > 512 else min(32, 2 * _warps(row))


def _norm_warps(size: int, rows: int) -> int:
    """Warps for a norm, whose sum is a tree: many where few rows wait for it, else few."""
    power: int = triton.next_power_of_2(size)
    return max(1, power // 2048) if rows > 512 else min(16, max(1, power // 128))
