# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
"""What happens to rows between two products: norms, rotary, gates, rounding to codes.

Each kernel adds up a product's partial sums, scales them, works on the row and leaves the codes of
the next product, so that nothing float crosses memory but the residual stream. One program a row,
or a row's head.
"""

from __future__ import annotations

import triton
import triton.language as tl

from backends.local.gpu.arithmetic import (
    codes_of,
    gate,
    halves_sum,
    inverse_of,
    round_even,
    store_digits,
)
from backends.local.gpu.chain import await_previous

__all__ = ["add_and_norm", "embed_and_norm", "gate_rows", "quantize_rows", "split_heads"]


@triton.jit
def _normed(x, weight, COUNT: tl.constexpr, SIZE: tl.constexpr, LEVELS: tl.constexpr, EPS):
    """`reference.rms_norm` of x [SIZE], zero behind COUNT."""
    return x * _inverse_rms(x, COUNT, SIZE, LEVELS, EPS) * weight


@triton.jit
def _inverse_rms(x, COUNT: tl.constexpr, SIZE: tl.constexpr, LEVELS: tl.constexpr, EPS):
    mean = halves_sum(tl.reshape(x * x, [1, SIZE]), 1, SIZE, LEVELS) * (1 / COUNT)
    return tl.div_rn(tl.full([1], 1.0, tl.float32), tl.sqrt_rn(mean + EPS))


@triton.jit
def _summed(sums, row, columns, ok, T, N, SPLITS: tl.constexpr):
    """The whole product of partial sums [SPLITS, T, N], as float32."""
    at = sums + row.to(tl.int64) * N + columns
    total = tl.load(at, mask=ok, other=0)
    for split in tl.static_range(1, SPLITS):
        total += tl.load(at + split * T.to(tl.int64) * N, mask=ok, other=0)
    return total.to(tl.float32)


@triton.jit
def _store_codes(
    x, columns, ok, digits, row_scale, row, N: tl.constexpr, plane, MAX_CODE: tl.constexpr
):
    """Rounds the row x, zeros behind N, to codes (`reference.activation_codes`); stores digits."""
    largest = tl.max(tl.abs(x), axis=0)
    inverse = inverse_of(largest, MAX_CODE * 1.0)
    step = largest * (1 / MAX_CODE)
    if MAX_CODE > 127:
        wider = _wider(codes_of(x, inverse), N, MAX_CODE)
        inverse = inverse * (1.0 / wider)
        step = step * wider
    at = digits + row.to(tl.int64) * N + columns
    store_digits(at, plane, codes_of(x, inverse), ok, MAX_CODE)
    tl.store(row_scale + row, step)


@triton.jit
def _wider(codes, N: tl.constexpr, MAX_CODE: tl.constexpr):
    """How much wider a row's step is than its largest asks for, by the codes that it asks for."""
    total = tl.sum(tl.abs(codes), axis=0)
    wider = 1.0
    for level in tl.static_range(1, 7):
        if (127 << level) <= MAX_CODE:
            # In units of REACH, or the comparison could pass 32 bits.
            wider = tl.where(total >= ((127 * N << level) + 31) // 32, (1 << level) * 1.0, wider)
    return wider


@triton.jit
def embed_and_norm(
    tokens,  # int32 [T]
    codes,  # int8 [V, N]
    scale,  # [V]
    factor,  # [N]
    x,  # float32 [T, N], written
    weight,  # of the first norm
    digits,
    row_scale,
    plane,
    EPS: tl.constexpr,
    N: tl.constexpr,
    SIZE: tl.constexpr,
    LEVELS: tl.constexpr,
    MAX_CODE: tl.constexpr,
    CHAINED: tl.constexpr = False,
):
    """x = the token's embedding; the codes of its norm."""
    row = tl.program_id(0)
    columns = tl.arange(0, SIZE)
    ok = columns < N
    await_previous(CHAINED)
    token = tl.load(tokens + row)
    values = tl.load(codes + token.to(tl.int64) * N + columns, mask=ok, other=0).to(tl.float32)
    values = values * tl.load(scale + token) * tl.load(factor + columns, mask=ok, other=0.0)
    tl.store(x + row.to(tl.int64) * N + columns, values, mask=ok)
    by = tl.load(weight + columns, mask=ok, other=0.0)
    normed = _normed(values, by, N, SIZE, LEVELS, EPS)
    _store_codes(normed, columns, ok, digits, row_scale, row, N, plane, MAX_CODE)


@triton.jit(do_not_specialize=["T"])
def add_and_norm(
    sums,  # int32 [SPLITS, T, N]
    in_scale,  # [T]
    scale,  # [N]
    after,  # weight of the norm before the sum, if AFTER
    x,  # float32 [T, N], read and, unless GATHER, written
    weight,  # of the norm behind the sum
    wanted,  # int32, the rows that are looked at, if GATHER
    digits,
    row_scale,
    T,
    plane,
    SPLITS: tl.constexpr,
    AFTER: tl.constexpr,
    GATHER: tl.constexpr,
    EPS: tl.constexpr,
    N: tl.constexpr,
    SIZE: tl.constexpr,
    LEVELS: tl.constexpr,
    MAX_CODE: tl.constexpr,
    CHAINED: tl.constexpr = False,
):
    """x += norm(product); the codes of norm(x). With GATHER, program i works on row wanted[i]."""
    at = tl.program_id(0)
    row = at
    if GATHER:
        row = tl.load(wanted + at)
    columns = tl.arange(0, SIZE)
    ok = columns < N
    by_column = tl.load(scale + columns, mask=ok, other=0.0)
    by = tl.load(weight + columns, mask=ok, other=0.0)
    await_previous(CHAINED)
    h = _summed(sums, row, columns, ok, T, N, SPLITS)
    h = h * tl.load(in_scale + row) * by_column
    if AFTER:
        h = _normed(h, tl.load(after + columns, mask=ok, other=0.0), N, SIZE, LEVELS, EPS)
    x_at = x + row.to(tl.int64) * N + columns
    values = tl.load(x_at, mask=ok, other=0.0) + h
    if not GATHER:
        tl.store(x_at, values, mask=ok)
    normed = _normed(values, by, N, SIZE, LEVELS, EPS)
    _store_codes(normed, columns, ok, digits, row_scale, at, N, plane, MAX_CODE)


@triton.jit(do_not_specialize=["T"])
def gate_rows(
    sums,  # int32 [SPLITS, T, 2 N], the gate first
    in_scale,  # [T]
    scale,  # [2 N]
    digits,
    row_scale,
    T,
    plane,
    SPLITS: tl.constexpr,
    GELU: tl.constexpr,
    N: tl.constexpr,
    SIZE: tl.constexpr,
    MAX_CODE: tl.constexpr,
    CHAINED: tl.constexpr = False,
):
    """The codes of act(gate) * up."""
    row = tl.program_id(0)
    columns = tl.arange(0, SIZE)
    ok = columns < N
    await_previous(CHAINED)
    by_row = tl.load(in_scale + row)
    first = _summed(sums, row, columns, ok, T, 2 * N, SPLITS)
    first = first * by_row * tl.load(scale + columns, mask=ok, other=0.0)
    up = _summed(sums, row, columns + N, ok, T, 2 * N, SPLITS)
    up = up * by_row * tl.load(scale + columns + N, mask=ok, other=0.0)
    _store_codes(gate(first, up, GELU), columns, ok, digits, row_scale, row, N, plane, MAX_CODE)


@triton.jit
def quantize_rows(
    x,  # float32 [T, N]
    digits,
    row_scale,
    plane,
    N: tl.constexpr,
    SIZE: tl.constexpr,
    MAX_CODE: tl.constexpr,
    CHAINED: tl.constexpr = False,
):
    """The codes of rows."""
    row = tl.program_id(0)
    columns = tl.arange(0, SIZE)
    ok = columns < N
    await_previous(CHAINED)
    values = tl.load(x + row.to(tl.int64) * N + columns, mask=ok, other=0.0)
    _store_codes(values, columns, ok, digits, row_scale, row, N, plane, MAX_CODE)


@triton.jit(do_not_specialize=["T", "width", "row_bytes"])
def split_heads(
    sums,  # int32 [SPLITS, T, heads * D]
    in_scale,  # [T]
    scale,  # [heads * D]
    norms,  # float32 [Hq + Hkv, D], if NORM
    cos,  # float32 [positions, D / 2]
    sin,
    positions,  # int32 [T]
    owners,  # int32 [T]
    slots,  # int32 [B, width]
    first_page,  # int32 [B]
    q_codes,  # int8 [T, Hq, D], written
    q_scale,  # float32 [T, Hq], written
    pages,  # int8, the arena's bytes, written
    halves,  # the same bytes as float16
    T,
    width,
    page_bytes,
    row_bytes,  # where the layer begins in a page
    SCALE: tl.constexpr,  # of attention
    SPLITS: tl.constexpr,
    NORM: tl.constexpr,
    EPS: tl.constexpr,
    HEADS: tl.constexpr,  # in a row: queries, then keys and values where the layer owns KV
    Q_HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    D: tl.constexpr,
    SIZE: tl.constexpr,
    LEVELS: tl.constexpr,
    CHAINED: tl.constexpr = False,
):
    """Norm and rotation of one head; a query becomes codes, a key or value goes to its page.

    A row without an owner writes its query alone.
    """
    row = tl.program_id(0)
    head = tl.program_id(1)
    N: tl.constexpr = HEADS * D
    HALF: tl.constexpr = D // 2
    columns = tl.arange(0, SIZE // 2)
    ok = columns < HALF
    await_previous(CHAINED)
    by_row = tl.load(in_scale + row)
    begin = head * D
    first = _summed(sums, row, begin + columns, ok, T, N, SPLITS)
    first = first * by_row * tl.load(scale + begin + columns, mask=ok, other=0.0)
    second = _summed(sums, row, begin + HALF + columns, ok, T, N, SPLITS)
    second = second * by_row * tl.load(scale + begin + HALF + columns, mask=ok, other=0.0)
    if head < Q_HEADS + KV_HEADS:
        if NORM:
            every = tl.arange(0, SIZE)
            inside = every < D
            whole = _summed(sums, row, begin + every, inside, T, N, SPLITS)
            whole = whole * by_row * tl.load(scale + begin + every, mask=inside, other=0.0)
            inverse = _inverse_rms(whole, D, SIZE, LEVELS, EPS)
            first = first * inverse * tl.load(norms + begin + columns, mask=ok, other=0.0)
            second = second * inverse * tl.load(norms + begin + HALF + columns, mask=ok, other=0.0)
        position = tl.load(positions + row)
        at = position.to(tl.int64) * HALF + columns
        c = tl.load(cos + at, mask=ok, other=0.0)
        s = tl.load(sin + at, mask=ok, other=0.0)
        turned = first * c - second * s
        second = second * c + first * s
        first = turned
    largest = tl.maximum(tl.max(tl.abs(first), axis=0), tl.max(tl.abs(second), axis=0))
    if head < Q_HEADS:
        inverse = inverse_of(largest, 127.0)
        out = q_codes + (row.to(tl.int64) * Q_HEADS + head) * D + columns
        tl.store(out, codes_of(first, inverse).to(tl.int8), mask=ok)
        tl.store(out + HALF, codes_of(second, inverse).to(tl.int8), mask=ok)
        tl.store(q_scale + row * Q_HEADS + head, largest * (1 / 127) * SCALE)
    else:
        owner = tl.load(owners + row)
        if owner >= 0:
            position = tl.load(positions + row)
            page = position // 64 - tl.load(first_page + owner)
            slot = tl.load(slots + owner * width + page)
            kv_head = (head - Q_HEADS) % KV_HEADS
            is_value = (head - Q_HEADS) // KV_HEADS
            token = position % 64
            base = slot.to(tl.int64) * page_bytes + row_bytes
            half = tl.minimum(largest * (1 / 127), 65504.0).to(tl.float16)
            divisor = half.to(tl.float32)
            some = divisor > 0
            divisor = tl.where(some, divisor, 1.0)
            one = tl.where(some, tl.div_rn(first, divisor), 0.0)
            two = tl.where(some, tl.div_rn(second, divisor), 0.0)
            # The scale is fp16 and may be smaller than the largest value / 127: cut to 127.
            one = tl.minimum(tl.maximum(round_even(one), -127.0), 127.0)
            two = tl.minimum(tl.maximum(round_even(two), -127.0), 127.0)
            plane: tl.constexpr = 64 * KV_HEADS * D
            out_kv = pages + base + is_value * plane + (token * KV_HEADS + kv_head) * D + columns
            tl.store(out_kv, one.to(tl.int8), mask=ok)
            tl.store(out_kv + HALF, two.to(tl.int8), mask=ok)
            place = base // 2 + plane + (is_value * 64 + token) * KV_HEADS + kv_head
            tl.store(halves + place, half)
