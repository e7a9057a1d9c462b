"""The CUDA kernels for Hopper, each in place of one or two of Triton's, with the same bits.

A decode's attention with one KV head (`decode.cu`, `merge.cu`), its heads (`heads.cu`), products of
few rows (`products.cu`, `gates.cu`) and what lies between them (`rows.cu`).
"""

from __future__ import annotations

import ctypes
from ctypes import c_float, c_longlong
from typing import TYPE_CHECKING

from backends.local.gpu import cuda
from backends.local.kernels.pages import PAGE_TOKENS, SPAN_TOKENS

if TYPE_CHECKING:
    from torch import Tensor

    from backends.local.gpu.scratch import LayerPages
    from backends.local.model_config import ModelConfig
    from backends.local.quantize import QuantLinear, QuantModel

__all__ = ["Decode", "Heads", "Products", "Rows"]

_MULTIPROCESSORS = 132  # of an H100 and an H200
_SHARED = 232_448  # bytes that a block can have
_BESIDE = 24 << 10  # what a product leaves to the blocks of other launches


class Decode:
    """Attention of sequences that have one new token, of `heads` query heads to one KV head."""

    def __init__(self, dim: int, heads: int) -> None:
        self._dim = dim
        self._heads = heads
        self._blocks = 3 if dim == 128 else 1  # on a multiprocessor, by their shared memory
        self._shares = 1 + (heads % 2 == 0)  # blocks of a sequence's merge; four were slower
        sizes = {"D": dim, "G": heads, "BLOCKS": self._blocks, "SHARES": self._shares}
        self._spans = cuda.kernels("decode.cu", {"decode_spans": _SHARED}, **sizes)["decode_spans"]
        self._merge = cuda.kernels("merge.cu", {"merge_spans": 0}, **sizes)["merge_spans"]

    def spans(
        self,
        queries: tuple[Tensor, Tensor],  # int8 [T, G, D], and their scales
        starts: Tensor,  # int32 [B + 1]
        lengths: Tensor,  # int32 [B]
        kv: LayerPages,
        parts: tuple[Tensor, Tensor, Tensor],  # tops, totals, outs: written
        taken: Tensor,  # int32 [2], zeros before and behind
        *,
        chained: bool,
    ) -> None:
        """As `attention.decode_spans`."""
        sequences = len(lengths)
        lines = PAGE_TOKENS * self._dim // 128
        self._spans.launch(
            (min(_MULTIPROCESSORS * self._blocks, sequences * kv.reads), 1, 1),
            self._dim + 32,
            cuda.boxes(kv.codes, kv.codes.nbytes // 128, 128, lines),
            kv.codes,
            kv.slots,
            kv.first_page,
            *queries,
            starts,
            lengths,
            *parts,
            taken,
            sequences,
            kv.width,
            kv.codes.shape[1] // 128,
            kv.row_bytes // 128,
            kv.window,
            kv.reads,
            shared=self._shared(sequences),
            chained=chained,
        )

    def _shared(self, sequences: int) -> int:
        """Bytes of `Shared` in decode.cu."""
        span = SPAN_TOKENS * (2 * self._dim + 4)
        return span + 22 * self._dim + 4288 + 4 * sequences

    def merge(
        self,
        parts: tuple[Tensor, Tensor, Tensor],
        starts: Tensor,
        lengths: Tensor,
        kv: LayerPages,
        digits: Tensor,  # int8 [2, at least T * G * D], the low ones written
        row_scale: Tensor,  # float32 [T], written
        *,
        chained: bool,
    ) -> None:
        """`attention.merge_spans`, then 8-bit `rows.quantize_rows` of each sequence's row."""
        self._merge.launch(
            (len(lengths) * self._shares, 1, 1),
            self._heads * self._dim // 4 // self._shares,
            *parts,
            starts,
            lengths,
            digits[1],
            row_scale,
            kv.window,
            kv.reads,
            chained=chained,
        )


class _Product(ctypes.Structure):
    """`Product` in products.cuh."""

    _fields_ = (
        ("weights", cuda.TensorMap),
        ("high", cuda.TensorMap),
        ("low", cuda.TensorMap),
        ("inputs", ctypes.c_int),
        ("stages", ctypes.c_int),
        ("pad", ctypes.c_int * 14),
    )


class Products:
    """Products of at most 64 rows, and what is done with them."""

    OUTPUTS, INPUTS, ROWS = 64, 128, 64  # of a warpgroup, a stage, a step
    GATE_GROUPS = 2  # as in gates.cu
    MOST_SPLITS = 8

    def __init__(self, model: QuantModel) -> None:
        tanh = int(model.config.activation == "gelu_tanh")
        gates = {_digits(layer.gate_up) for layer in model.layers}
        sums = {
            (_digits(linear), self.cut(linear)[0])
            for layer in model.layers
            for linear in (layer.qkv, layer.out, layer.down)
        }
        self._gates = {
            digits: cuda.kernels("gates.cu", {"gate_products": _SHARED}, DIGITS=digits, TANH=tanh)
            for digits in gates
        }
        self._sums = {
            (digits, groups): cuda.kernels(
                "products.cu", {"sum_products": _SHARED}, DIGITS=digits, GROUPS=groups
            )
            for digits, groups in sums
        }

    def serves(self, tokens: int, linear: QuantLinear) -> bool:
        """Whether this is computed here."""
        outputs, inputs = linear.codes.shape
        return tokens <= self.ROWS and inputs % 16 == 0 and outputs % 16 == 0

    def cut(self, linear: QuantLinear) -> tuple[int, int]:
        """For partial sums: the warpgroups of a block, and the splits of the inputs.

        As many blocks as there are multiprocessors at most, each of at least six stages, since the
        next kernel waits for every split's sums; of equals the wider, whose rows are read less.
        """
        outputs, inputs = linear.codes.shape
        steps = -(-inputs // self.INPUTS)
        best, most = (2, 1), 0
        for groups in (1, 2):
            blocks, splits = -(-outputs // (self.OUTPUTS * groups)), 1
            while (
                2 * splits <= self.MOST_SPLITS
                and 2 * splits * blocks <= _MULTIPROCESSORS
                and steps // (2 * splits) >= 6
            ):
                splits *= 2
            fits = min(splits * blocks, _MULTIPROCESSORS)
            if fits >= most:
                best, most = (groups, splits), fits
        return best

    def splits(self, linear: QuantLinear) -> int:
        """Partial sums of each output."""
        return self.cut(linear)[1]

    def sums(
        self,
        digits: Tensor,
        tokens: int,
        linear: QuantLinear,
        out: Tensor,
        *,
        early: bool = False,
        chained: bool,
    ) -> int:
        """As `gemm.linear_sums`. `early`: the next launch may begin at once, not when this may."""
        groups, splits = self.cut(linear)
        kernel = self._sums[_digits(linear), groups]["sum_products"]
        given = (out, tokens, len(linear.codes), int(early))
        self._launch(kernel, digits, tokens, linear, (groups, splits), given, chained=chained)
        return splits

    def gated(
        self,
        digits: Tensor,
        tokens: int,
        linear: QuantLinear,
        row_scale: Tensor,
        out: Tensor,  # float32, at least tokens * outputs / 2
        *,
        chained: bool,
    ) -> None:
        """act(gate) * up [tokens, outputs / 2]; the layer's outputs are the gate, then up."""
        kernel = self._gates[_digits(linear)]["gate_products"]
        given = (row_scale, linear.scale, out, tokens, len(linear.codes) // 2)
        cut = (self.GATE_GROUPS, 1)
        self._launch(kernel, digits, tokens, linear, cut, given, chained=chained)

    def _launch(
        self,
        kernel: cuda.Kernel,
        digits: Tensor,
        tokens: int,
        linear: QuantLinear,
        cut: tuple[int, int],  # as `cut`
        given: tuple[cuda.Argument, ...],
        *,
        chained: bool,
    ) -> None:
        outputs, inputs = linear.codes.shape
        groups, splits = cut
        width, rows = self.OUTPUTS * groups, self.ROWS * _digits(linear)
        room = self.INPUTS * (width + rows) + 16  # a stage and two barriers
        steps = -(-inputs // self.INPUTS)
        stages = min(-(-steps // splits), (_SHARED - _BESIDE) // room)
        weights = cuda.boxes(linear.codes, outputs, inputs, self.OUTPUTS // 2)
        planes = [cuda.boxes(plane, tokens, inputs, self.ROWS) for plane in digits]
        kernel.launch(
            (-(-outputs // width), splits, 1),
            128 * groups + 32,
            _Product(weights, *planes, inputs, stages),
            *given,
            shared=stages * room,
            chained=chained,
        )


def _digits(linear: QuantLinear) -> int:
    return 1 if linear.max_code <= 127 else 2


class Heads:
    """Norm, rotation and codes of the heads of a row, of 128 numbers, with one KV head."""

    MOST_SPLITS = 4

    def __init__(self, config: ModelConfig) -> None:
        self._kernel = cuda.kernels("heads.cu", {"split_heads": 0})["split_heads"]
        self._queries = config.q_heads
        self._numbers = (c_float(config.attention_scale), c_float(config.rms_eps))

    def split(
        self,
        sums: Tensor,
        splits: int,
        tokens: int,
        linear: QuantLinear,
        row_scale: Tensor,
        norms: Tensor | None,
        rope: tuple[Tensor, Tensor],
        places: tuple[Tensor, Tensor],  # positions and owners of rows, int32 [T]
        queries: tuple[Tensor, Tensor],  # codes and scales, written
        kv: LayerPages,  # the arena is written
        *,
        chained: bool,
    ) -> None:
        """As `rows.split_heads`."""
        self._kernel.launch(
            (tokens, 1, 1),
            len(linear.codes) // 4,  # a warp for 128 outputs
            sums,
            row_scale,
            linear.scale,
            norms,
            *rope,
            *places,
            kv.slots,
            kv.first_page,
            *queries,
            kv.codes,
            c_longlong(kv.codes.shape[1]),
            c_longlong(kv.row_bytes),
            splits,
            kv.width,
            self._queries,
            *self._numbers,
            chained=chained,
        )


class Rows:
    """Work on whole rows of a model's residual stream and of its gated activations."""

    def __init__(self, config: ModelConfig) -> None:
        hidden, inner = config.hidden_size, config.intermediate_size
        size = max(512, 1 << (hidden - 1).bit_length())
        sizes = {"N": hidden, "SIZE": size, "INNER": inner}
        names = {"add_and_norm": 0, "quantize_gates": 0}
        self._kernels = cuda.kernels("rows.cu", names, **sizes)
        self._norm = (c_float(1 / hidden), c_float(config.rms_eps))

    def add_and_norm(
        self,
        sums: Tensor,
        splits: int,
        tokens: int,
        scales: tuple[Tensor, Tensor, Tensor],  # of the rows that came in, the layer, and written
        x: Tensor,
        weights: tuple[Tensor | None, Tensor],  # of the norms before and behind the sum
        digits: Tensor,
        wanted: Tensor | None,
        count: int,
        *,
        chained: bool,
    ) -> None:
        """As `rows.add_and_norm` with codes of 8 bits, for all `tokens` rows or the first `count`
        that are `wanted`."""
        self._kernels["add_and_norm"].launch(
            (count, 1, 1),
            512,
            sums,
            *scales[:2],
            weights[0],
            x,
            weights[1],
            wanted,
            digits[1],
            scales[2],
            tokens,
            splits,
            *self._norm,
            chained=chained,
        )

    def quantize_gates(
        self,
        x: Tensor,  # float32 [T, inner]
        tokens: int,
        digits: Tensor,
        row_scale: Tensor,
        max_code: int,
        *,
        chained: bool,
    ) -> None:
        """As `rows.quantize_rows`."""
        self._kernels["quantize_gates"].launch(
            (tokens, 1, 1),
            512,
            x,
            digits,
            row_scale,
            c_longlong(digits.stride(0)),
            max_code,
            c_float(1 / max_code),
            chained=chained,
        )
