# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
"""Attention over pages of int8 KV: `reference.attend` in its own order, span by span.

The codes of queries meet those of keys in integers. Softmax weights' codes, 0 to 255, meet those of
values in half precision: a span's sums stay below 255 * 127 * 256 < 2**24, which float32 counts
exactly.

A decode is spread over the sequence by spans, each giving its own result, and `merge_spans` folds
them in ascending order, which is the reference's order. Pages outside a window are not read.
"""

from __future__ import annotations

import triton
import triton.language as tl

from backends.local.gpu.arithmetic import (
    codes_of,
    exp_below,
    halves_of,
    inverse_of,
    round_even,
    store_digits,
    whole_sum,
)

__all__ = ["DECODE_HEADS", "attend_chunks", "decode_spans", "merge_spans"]

DECODE_HEADS = 16
"""Query heads that a program of `decode_spans` takes: rows of the smallest tile."""


@triton.jit
def _load(at, ok, dims, D: tl.constexpr, SIZE: tl.constexpr):
    """Rows at pointers `at` [R], columns `dims`; zeros where there is none."""
    mask = ok[:, None]
    if D < SIZE:
        mask = mask & (dims < D)[None, :]
    return tl.load(at[:, None] + dims[None, :], mask=mask, other=0)


@triton.jit
def _weigh(scores, v_scale):
    """A span's largest score, sum of weights, codes of weights times scales (float16), their step.

    scores: [ROWS, 256], -inf where a row does not see the key; the largest is -inf where it sees
    none.
    """
    largest = tl.max(scores, axis=1)
    base = tl.where(largest == -float("inf"), 0.0, largest)
    weights = exp_below(scores - base[:, None])
    total = whole_sum(weights, 256)
    scaled = weights * v_scale[None, :]
    most = tl.max(scaled, axis=1)
    codes = round_even(scaled * inverse_of(most, 255.0)[:, None]).to(tl.float16)
    return largest, total, codes, most * (1 / 255)


@triton.jit(do_not_specialize=["width"])
def decode_spans(
    q_codes,  # int8 [T, Hq, D]
    q_scale,  # float32 [T, Hq]
    starts,  # int32 [B + 1]
    lengths,  # int32 [B]
    slots,  # int32 [B, width]
    first_page,  # int32 [B]
    pages,  # int8, the arena's bytes
    halves,  # the same bytes as float16
    tops,  # float32 [B, Hkv, P, G], written
    totals,  # the same
    outs,  # float32 [B, Hkv, P, G, D], written
    width,
    page_bytes,
    row_bytes,
    WINDOW: tl.constexpr,  # 0 for global attention
    P: tl.constexpr,  # spans that a sequence may read
    KV_HEADS: tl.constexpr,
    G: tl.constexpr,
    D: tl.constexpr,
    SIZE: tl.constexpr,
    PIECE: tl.constexpr,  # dimensions that are in shared memory at a time
    ROWS: tl.constexpr,  # DECODE_HEADS
    PACKED: tl.constexpr,
):
    """One span's own result for a sequence that has one new token."""
    GROUPS: tl.constexpr = (G + ROWS - 1) // ROWS
    b = tl.program_id(0)
    kv_head = tl.program_id(1) // GROUPS
    row = tl.load(starts + b)
    one = tl.load(starts + b + 1) - row == 1
    length = tl.load(lengths + b)
    first = 0
    if WINDOW:
        first = tl.maximum(length - WINDOW, 0) // 256
    span = first + tl.program_id(2)
    if one & (span * 256 < length):
        keys = span * 256 + tl.arange(0, 256)
        seen = keys < length
        if WINDOW:
            seen = seen & (keys >= length - WINDOW)
        table = slots + b * width - tl.load(first_page + b)
        base = tl.load(table + keys // 64, mask=seen, other=0).to(tl.int64) * page_bytes
        base += row_bytes
        inside = (keys % 64) * KV_HEADS + kv_head
        plane: tl.constexpr = 64 * KV_HEADS * D
        scales = halves + base // 2 + plane + inside
        k_scale = tl.load(scales, mask=seen, other=0.0).to(tl.float32)
        v_scale = tl.load(scales + 64 * KV_HEADS, mask=seen, other=0.0).to(tl.float32)
        head = tl.program_id(1) % GROUPS * ROWS + tl.arange(0, ROWS)
        head_ok = head < G
        q_row = row.to(tl.int64) * (KV_HEADS * G) + kv_head * G + head
        by_query = tl.load(q_scale + q_row, mask=head_ok, other=0.0)
        q_at, k_at = q_codes + q_row * D, pages + base + inside * D
        dots = tl.zeros([ROWS, 256], tl.int32)
        for begin in tl.static_range(0, SIZE, PIECE):
            dims = begin + tl.arange(0, PIECE)
            k = tl.trans(_load(k_at, seen, dims, D, SIZE))
            dots = tl.dot(_load(q_at, head_ok, dims, D, SIZE), k, dots, out_dtype=tl.int32)
        scores = dots.to(tl.float32) * by_query[:, None] * k_scale[None, :]
        scores = tl.where(seen[None, :], scores, -float("inf"))
        largest, total, weights, step = _weigh(scores, v_scale)
        at = ((b * KV_HEADS + kv_head) * P + span - first).to(tl.int64) * G + head
        tl.store(tops + at, largest, mask=head_ok)
        tl.store(totals + at, total, mask=head_ok)
        for begin in tl.static_range(0, SIZE, PIECE):
            dims = begin + tl.arange(0, PIECE)
            v = halves_of(_load(k_at + plane, seen, dims, D, SIZE), PACKED)
            values = tl.dot(weights, v) * step[:, None]
            ok = head_ok[:, None] & (dims < D)[None, :]
            tl.store(outs + at[:, None] * D + dims[None, :], values, mask=ok)


@triton.jit
def merge_spans(
    tops,  # float32 [B, Hkv, P, G]
    totals,
    outs,  # float32 [B, Hkv, P, G, D]
    starts,
    lengths,
    digits,
    row_scale,
    plane,
    WINDOW: tl.constexpr,
    UNROLL: tl.constexpr,
    P: tl.constexpr,
    G: tl.constexpr,
    HEADS: tl.constexpr,  # all query heads
    HEAD_ROWS: tl.constexpr,
    D: tl.constexpr,
    SIZE: tl.constexpr,
    MAX_CODE: tl.constexpr,
):
    """Folds the spans of one sequence in ascending order; the codes of all heads' output."""
    b = tl.program_id(0)
    row = tl.load(starts + b)
    if tl.load(starts + b + 1) - row == 1:
        length = tl.load(lengths + b)
        first = 0
        if WINDOW:
            first = tl.maximum(length - WINDOW, 0) // 256
        count = (length + 255) // 256 - first
        heads = tl.arange(0, HEAD_ROWS)
        dims = tl.arange(0, SIZE)
        head_ok = heads < HEADS
        ok = head_ok[:, None] & (dims < D)[None, :]
        at = (b * (HEADS // G) + heads // G).to(tl.int64) * (P * G) + heads % G
        top = tl.full([HEAD_ROWS], -float("inf"), tl.float32)
        total = tl.zeros([HEAD_ROWS], tl.float32)
        out = tl.zeros([HEAD_ROWS, SIZE], tl.float32)
        for span in range(0, count, UNROLL):
            for step in tl.static_range(UNROLL):
                here = span + step < count
                next_at = at + (span + step) * G
                new_top = tl.load(tops + next_at, mask=head_ok & here, other=-float("inf"))
                new_total = tl.load(totals + next_at, mask=head_ok & here, other=0.0)
                new_out = tl.load(
                    outs + next_at[:, None] * D + dims[None, :], mask=ok & here, other=0.0
                )
                # Behind the last span, and in rows of padding, the new part is exactly nothing.
                larger = tl.maximum(top, new_top)
                base = tl.where(larger == -float("inf"), 0.0, larger)
                old, new = exp_below(top - base), exp_below(new_top - base)
                total = total * old + new_total * new
                out = out * old[:, None] + new_out * new[:, None]
                top = larger
        out = tl.div_rn(out, tl.broadcast_to(tl.where(head_ok, total, 1.0)[:, None], out.shape))
        out = tl.where(ok, out, 0.0)
        largest = tl.max(tl.max(tl.abs(out), axis=1), axis=0)
        codes = codes_of(out, inverse_of(largest, MAX_CODE * 1.0))
        to = digits + row.to(tl.int64) * (HEADS * D) + heads[:, None] * D + dims[None, :]
        store_digits(to, plane, codes, ok, MAX_CODE)
        tl.store(row_scale + row, largest * (1 / MAX_CODE))


@triton.jit
def _folded(out, values, old, new, some):
    """A span's values folded into what came before, in the rows that see any of it."""
    return tl.where(some[:, None], out * old[:, None] + values * new[:, None], out)


@triton.jit(do_not_specialize=["width"])
def attend_chunks(
    q_codes,
    q_scale,
    starts,
    lengths,
    tile_owner,  # int32 [tiles], the sequence of each tile, -1 for none
    tile_first,  # int32 [tiles], the tile's first token in its chunk
    slots,
    first_page,
    pages,
    halves,
    out,  # float32 [T, Hq, D], written
    width,
    page_bytes,
    row_bytes,
    WINDOW: tl.constexpr,
    TOKENS: tl.constexpr,  # a tile
    KV_HEADS: tl.constexpr,
    G: tl.constexpr,
    HEADS: tl.constexpr,  # G, rounded up to a power of two
    D: tl.constexpr,
    SIZE: tl.constexpr,
    PIECE: tl.constexpr,  # SIZE or half of it
    PACKED: tl.constexpr,
):
    """The chunks of more than one token: a tile of queries reads span after span, folding."""
    b = tl.load(tile_owner + tl.program_id(0))
    kv_head = tl.program_id(1)
    if b >= 0:
        first_token = tl.load(tile_first + tl.program_id(0))
        start = tl.load(starts + b)
        count = tl.load(starts + b + 1) - start
        length = tl.load(lengths + b)
        ROWS: tl.constexpr = TOKENS * HEADS
        rows = tl.arange(0, ROWS)
        token = first_token + rows // HEADS
        head = rows % HEADS
        row_ok = (token < count) & (head < G)
        here = length - count + token  # positions
        q_row = (start + token).to(tl.int64) * (KV_HEADS * G) + kv_head * G + head
        by_query = tl.load(q_scale + q_row, mask=row_ok, other=0.0)
        q_at = q_codes + q_row * D
        plane: tl.constexpr = 64 * KV_HEADS * D
        table = slots + b * width - tl.load(first_page + b)
        top = tl.full([ROWS], -float("inf"), tl.float32)
        sums = tl.zeros([ROWS], tl.float32)
        one = tl.zeros([ROWS, PIECE], tl.float32)
        two = tl.zeros([ROWS, PIECE], tl.float32)
        before = length - count + first_token
        low_key = 0
        if WINDOW:
            low_key = tl.maximum(before - WINDOW + 1, 0)
        last = tl.minimum(before + TOKENS, length)  # keys that the tile's last token sees
        for span in range(low_key // 256, (last + 255) // 256):
            keys = span * 256 + tl.arange(0, 256)
            ok = (keys >= low_key) & (keys < last)
            base = tl.load(table + keys // 64, mask=ok, other=0).to(tl.int64) * page_bytes
            base += row_bytes
            inside = (keys % 64) * KV_HEADS + kv_head
            k_at = pages + base + inside * D
            dots = tl.zeros([ROWS, 256], tl.int32)
            for begin in tl.static_range(0, SIZE, PIECE):
                dims = begin + tl.arange(0, PIECE)
                k = tl.trans(_load(k_at, ok, dims, D, SIZE))
                dots = tl.dot(_load(q_at, row_ok, dims, D, SIZE), k, dots, out_dtype=tl.int32)
            scales = halves + base // 2 + plane + inside
            k_scale = tl.load(scales, mask=ok, other=0.0).to(tl.float32)
            v_scale = tl.load(scales + 64 * KV_HEADS, mask=ok, other=0.0).to(tl.float32)
            scores = dots.to(tl.float32) * by_query[:, None] * k_scale[None, :]
            seen = keys[None, :] <= here[:, None]
            if WINDOW:
                seen = seen & (keys[None, :] > here[:, None] - WINDOW)
            scores = tl.where(seen, scores, -float("inf"))
            largest, total, weights, step = _weigh(scores, v_scale)
            some = largest > -float("inf")
            larger = tl.maximum(top, largest)
            safe = tl.where(larger == -float("inf"), 0.0, larger)
            old, new = exp_below(top - safe), exp_below(largest - safe)
            sums = tl.where(some, sums * old + total * new, sums)
            top = larger
            dims = tl.arange(0, PIECE)
            v = halves_of(_load(k_at + plane, ok, dims, D, SIZE), PACKED)
            values = tl.dot(weights, v) * step[:, None]
            one = _folded(one, values, old, new, some)
            if PIECE < SIZE:
                v = halves_of(_load(k_at + plane, ok, PIECE + dims, D, SIZE), PACKED)
                values = tl.dot(weights, v) * step[:, None]
                two = _folded(two, values, old, new, some)
        sums = tl.where(sums > 0, sums, 1.0)[:, None]
        to = out + q_row[:, None] * D + tl.arange(0, PIECE)[None, :]
        ok_out = row_ok[:, None] & (tl.arange(0, PIECE) < D)[None, :]
        tl.store(to, tl.div_rn(one, tl.broadcast_to(sums, one.shape)), mask=ok_out)
        if PIECE < SIZE:
            ok_out = row_ok[:, None] & (PIECE + tl.arange(0, PIECE) < D)[None, :]
            tl.store(to + PIECE, tl.div_rn(two, tl.broadcast_to(sums, two.shape)), mask=ok_out)
