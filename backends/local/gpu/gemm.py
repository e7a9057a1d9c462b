# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
"""int8 linear layers, summed in int32: one dot product for 8-bit activation codes, for those of
what may pass 127 (behind the gate) two, of 7-bit digits.

Integer sums are exact in any order, so tiles and splits are chosen for speed alone: no choice here
changes a bit. A product is left as `splits` partial sums, which the kernel that reads it adds up
and scales, or is finished here to float32 (the output head).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from backends.local.gpu.chain import await_previous, fetch_ahead

if TYPE_CHECKING:
    from torch import Tensor

    from backends.local.quantize import QuantLinear

__all__ = ["Tiles", "linear_logits", "linear_sums", "tiles_for"]


@triton.jit(do_not_specialize=["T"])
def _linear(
    digits,  # int8 [2, rows, K]: high and low digits of the rows' codes
    codes,  # int8 [N, K]
    row_scale,
    scale,
    out,  # int32 [SPLITS, T, N], or float32 [T, N]
    T,
    N,
    K,
    plane,  # elements of one plane of digits
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SPLITS: tl.constexpr,
    WHOLE_K: tl.constexpr,
    NARROW: tl.constexpr,  # codes of 8 bits: the low digit is all
    FINISH: tl.constexpr,
    CHAINED: tl.constexpr,
):
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    outs = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    split = tl.program_id(2)
    ks = tl.arange(0, BLOCK_K)
    row_ok = rows < T
    out_ok = outs < N
    x_at = digits + rows[:, None].to(tl.int64) * K + ks[None, :]
    w_at = codes + outs[:, None].to(tl.int64) * K + ks[None, :]
    high = tl.zeros([BLOCK_M, BLOCK_N], tl.int32)
    low = tl.zeros([BLOCK_M, BLOCK_N], tl.int32)
    steps = tl.cdiv(K, BLOCK_K)
    share = tl.cdiv(steps, SPLITS)
    begin, end = split * share, tl.minimum(steps, (split + 1) * share)
    if CHAINED and BLOCK_M <= 64:  # else the weights are little beside the work
        rows_at = codes + tl.minimum(outs, N - 1).to(tl.int64) * K
        for line in range(begin * BLOCK_K, tl.minimum(end * BLOCK_K, K), 128):
            fetch_ahead(rows_at + line)
    await_previous(CHAINED)
    for step in range(begin, end):
        at = step * BLOCK_K
        x_ok = row_ok[:, None]
        w_ok = out_ok[:, None]
        if not WHOLE_K:
            k_ok = (ks + at < K)[None, :]
            x_ok, w_ok = x_ok & k_ok, w_ok & k_ok
        w = tl.trans(tl.load(w_at + at, mask=w_ok, other=0))
        if not NARROW:
            high = tl.dot(tl.load(x_at + at, mask=x_ok, other=0), w, high, out_dtype=tl.int32)
        low = tl.dot(tl.load(x_at + plane + at, mask=x_ok, other=0), w, low, out_dtype=tl.int32)
    total = low if NARROW else high * 128 + low
    ok = row_ok[:, None] & out_ok[None, :]
    at = rows[:, None].to(tl.int64) * N + outs[None, :]
    if FINISH:
        by_row = tl.load(row_scale + rows, mask=row_ok, other=0.0)
        by_out = tl.load(scale + outs, mask=out_ok, other=0.0)
        tl.store(out + at, total.to(tl.float32) * by_row[:, None] * by_out[None, :], mask=ok)
    else:
        tl.store(out + split.to(tl.int64) * T * N + at, total, mask=ok)


_MULTIPROCESSORS = 132  # of an H100 and an H200


@dataclass(frozen=True, slots=True)
class Tiles:
    """How a product is cut: tile sizes, splits of the inputs, warps and pipeline stages."""

    m: int
    n: int
    k: int
    splits: int
    warps: int
    stages: int


def tiles_for(tokens: int, linear: QuantLinear, *, split: bool = True) -> Tiles:
    """The cut for `tokens` rows, reckoned for an H100 and tried on an H200.

    Few rows: what moves fewest bytes through the L2 cache with no multiprocessor idle, where need
    be by splitting the inputs. Many: square tiles for the tensor cores.
    """
    outputs, inputs = linear.codes.shape
    if tokens > 64:
        return Tiles(128, 128, 128, 1, 8, 3)
    m: int = max(16, triton.next_power_of_2(tokens))
    digits = 1 if linear.max_code <= 127 else 2
    k = 256 if digits == 1 else 128
    steps = -(-inputs // k)

    def moved(choice: tuple[int, int]) -> float:
        """Bytes: a program's rows and weights, sums written and read, which is what the next kernel
        waits for; more where some multiprocessors are idle."""
        n, splits = choice
        programs = -(-outputs // n) * splits
        read = programs * -(-steps // splits) * k * (digits * m + n)
        return (read + 12 * m * outputs * splits) * max(1.0, _MULTIPROCESSORS / programs)

    cuts = [1, *(s for s in (2, 4, 8, 16) if split and 2 * s <= steps)]
    n, splits = min(((n, splits) for n in (64, 128) for splits in cuts), key=moved)
    return Tiles(m, n, k, splits, 4, 4)


def linear_sums(
    digits: Tensor,
    tokens: int,
    linear: QuantLinear,
    out: Tensor,
    tiles: Tiles,
    *,
    chained: bool = False,
) -> int:
    """Partial sums of digits [2, rows, K] times the layer's codes; returns how many.

    `out`: int32, at least splits * tokens * N elements; holds [splits, tokens, N] afterwards.
    """
    _launch(digits, tokens, linear, digits, out, tiles, finish=False, chained=chained)
    return tiles.splits


def linear_logits(
    digits: Tensor,
    row_scale: Tensor,
    tokens: int,
    linear: QuantLinear,
    out: Tensor,
    tiles: Tiles,
    *,
    chained: bool = False,
) -> None:
    """The layer's float32 outputs [tokens, N], into `out`; row_scale: float32 [rows]."""
    assert tiles.splits == 1
    _launch(digits, tokens, linear, row_scale, out, tiles, finish=True, chained=chained)


def _launch(
    digits: Tensor,
    tokens: int,
    linear: QuantLinear,
    row_scale: Tensor,
    out: Tensor,
    tiles: Tiles,
    *,
    finish: bool,
    chained: bool,
) -> None:
    outputs, inputs = linear.codes.shape
    assert digits.dtype == torch.int8
    grid = (triton.cdiv(tokens, tiles.m), triton.cdiv(outputs, tiles.n), tiles.splits)
    _linear[grid](
        digits,
        linear.codes,
        row_scale,
        linear.scale,
        out,
        tokens,
        outputs,
        inputs,
        digits.stride(0),
        BLOCK_M=tiles.m,
        BLOCK_N=tiles.n,
        BLOCK_K=tiles.k,
        SPLITS=tiles.splits,
        WHOLE_K=inputs % tiles.k == 0,
        NARROW=linear.max_code <= 127,
        FINISH=finish,
        CHAINED=chained,
        num_warps=tiles.warps,
        num_stages=tiles.stages,
        enable_fp_fusion=False,
        launch_pdl=chained,
    )
