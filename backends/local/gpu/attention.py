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
    exp_below,
    halves_of,
    inverse_of,
    round_even,
    whole_of,
)
from backends.local.gpu.chain import await_previous, fetch_ahead

__all__ = ["DECODE_HEADS", "attend_chunks", "decode_spans", "merge_spans"]

DECODE_HEADS = 16
"""Query heads that a program of `decode_spans` takes: rows of the smallest tile."""


@triton.jit
def _load(at, dims, D: tl.constexpr, SIZE: tl.constexpr):
    """Rows at pointers `at` [R], columns `dims`; zeros where there is no such column."""
    at = at[:, None] + dims[None, :]
    if D < SIZE:
        return tl.load(at, mask=(dims < D)[None, :], other=0)
    return tl.load(at)


@triton.jit
def _load_turned(at, dims, D: tl.constexpr, SIZE: tl.constexpr):
    """The same, turned: [columns, R]."""
    at = at[None, :] + dims[:, None]
    if D < SIZE:
        return tl.load(at, mask=(dims < D)[:, None], other=0)
    return tl.load(at)


@triton.jit
def _load_some(at, ok, dims, D: tl.constexpr):
    """Of rows that are `ok`, zeros for the others."""
    return tl.load(at[:, None] + dims[None, :], mask=ok[:, None] & (dims < D)[None, :], other=0)


@triton.jit
def _store_some(at, ok, dims, values, D: tl.constexpr):
    """Writes rows to pointers `at` [R], columns `dims`, where `ok`."""
    tl.store(at[:, None] + dims[None, :], values, mask=ok[:, None] & (dims < D)[None, :])


@triton.jit
def _bases(table, span, low, high, page_bytes):
    """Where the page of each of a span's 256 keys begins, int64.

    Instead of pages without a key in [low, high) it is the arena's first, which the cache has.
    """
    page = tl.arange(0, 256) // 64
    base = tl.zeros([256], tl.int64)
    for at in tl.static_range(4):
        key = span * 256 + at * 64
        slot = tl.load(table + span * 4 + at, mask=(key + 64 > low) & (key < high), other=0)
        base = tl.where(page == at, slot.to(tl.int64) * page_bytes, base)
    return base


@triton.jit
def _weigh(scores, v_scale):
    """A span's largest score, sum of weights, codes of weights times scales (float16), their step.

    scores: [ROWS, 256], -inf where a row does not see the key; the largest is -inf where it sees
    none.
    """
    largest = tl.max(scores, axis=1)
    base = tl.where(largest == -float("inf"), 0.0, largest)
    weights = exp_below(scores - base[:, None])
    total = tl.sum(whole_of(weights), axis=1).to(tl.float32) * (1 / 4194304)
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
    PIECE: tl.constexpr,  # SIZE or half of it
    ROWS: tl.constexpr,  # DECODE_HEADS
    PACKED: tl.constexpr,
    CHAINED: tl.constexpr = False,
):
    """One span's own result for a sequence that has one new token."""
    GROUPS: tl.constexpr = (G + ROWS - 1) // ROWS
    b = tl.program_id(0)
    kv_head = tl.program_id(1) // GROUPS
    row = tl.load(starts + b)
    one = tl.load(starts + b + 1) - row == 1
    length = tl.load(lengths + b)
    low = tl.maximum(length - WINDOW, 0) if WINDOW else 0  # the first key that is seen
    span = low // 256 + tl.program_id(2)
    some = one & (span * 256 < length)
    table = slots + b * width - tl.load(first_page + b)
    base = _bases(table, span, low, tl.where(some, length, 0), page_bytes) + row_bytes
    keys = span * 256 + tl.arange(0, 256)
    inside = (keys % 64) * KV_HEADS + kv_head
    plane: tl.constexpr = 64 * KV_HEADS * D
    k_at, scale_at = pages + base + inside * D, halves + base // 2 + plane + inside
    v_at, v_scale_at = k_at + plane, scale_at + 64 * KV_HEADS
    if PACKED:
        # The values come while the keys are worked on, and all while the launch before ends.
        fetch_ahead(v_scale_at)
        for line in tl.static_range(0, D, 128):
            if CHAINED:
                fetch_ahead(k_at + line)
            fetch_ahead(v_at + line)
    await_previous(CHAINED)
    if some:
        seen = (keys >= low) & (keys < length)
        head = tl.program_id(1) % GROUPS * ROWS + tl.arange(0, ROWS)
        head_ok = head < G
        q_row = row.to(tl.int64) * (KV_HEADS * G) + kv_head * G + head
        q_at = q_codes + q_row * D
        dims = tl.arange(0, PIECE)
        more = PIECE + dims
        # What takes longest is asked for first: a wait for one load is a wait for all before it.
        k = _load_turned(k_at, dims, D, SIZE)
        q = _load_some(q_at, head_ok, dims, D)
        by_query = tl.load(q_scale + q_row, mask=head_ok, other=0.0)
        k_scale = tl.load(scale_at, mask=seen, other=0.0).to(tl.float32)
        v_scale = tl.load(v_scale_at, mask=seen, other=0.0).to(tl.float32)
        dots = tl.dot(q, k, out_dtype=tl.int32)
        if PIECE < SIZE:
            k = _load_turned(k_at, more, D, SIZE)
            dots = tl.dot(_load_some(q_at, head_ok, more, D), k, dots, out_dtype=tl.int32)
        v = _load(v_at, dims, D, SIZE)
        scores = dots.to(tl.float32) * by_query[:, None] * k_scale[None, :]
        scores = tl.where(seen[None, :], scores, -float("inf"))
        largest, total, weights, step = _weigh(scores, v_scale)
        at = ((b * KV_HEADS + kv_head) * P + tl.program_id(2)).to(tl.int64) * G + head
        tl.store(tops + at, largest, mask=head_ok)
        tl.store(totals + at, total, mask=head_ok)
        out_at = outs + at * D
        values = tl.dot(weights, halves_of(v, PACKED)) * step[:, None]
        _store_some(out_at, head_ok, dims, values, D)
        if PIECE < SIZE:
            v = halves_of(_load(v_at, more, D, SIZE), PACKED)
            _store_some(out_at, head_ok, more, tl.dot(weights, v) * step[:, None], D)


@triton.jit
def _fold(top, new_top):
    """The larger of two largest scores, and what to multiply the sums of each span with.

    One of the two factors is `exp(0)`, which is 1.
    """
    larger = tl.maximum(top, new_top)
    less = exp_below(tl.minimum(top, new_top) - larger)
    later = new_top > top
    return larger, tl.where(later, less, 1.0), tl.where(later, 1.0, less)


@triton.jit
def merge_spans(
    tops,  # float32 [B, Hkv, P, G]
    totals,
    outs,  # float32 [B, Hkv, P, G, D]
    starts,
    lengths,
    attended,  # float32 [T, Hq, D], written
    WINDOW: tl.constexpr,
    UNROLL: tl.constexpr,
    P: tl.constexpr,
    G: tl.constexpr,
    D: tl.constexpr,
    SIZE: tl.constexpr,
    CHAINED: tl.constexpr = False,
):
    """Folds the spans of one sequence and query head in ascending order."""
    b = tl.program_id(0)
    head = tl.program_id(1)
    row = tl.load(starts + b)
    one = tl.load(starts + b + 1) - row == 1
    length = tl.load(lengths + b)
    await_previous(CHAINED)
    if one:
        low = tl.maximum(length - WINDOW, 0) if WINDOW else 0
        count = (length + 255) // 256 - low // 256
        dims = tl.arange(0, SIZE)
        ok = dims < D
        heads = tl.num_programs(1)
        at = (b * (heads // G) + head // G).to(tl.int64) * (P * G) + head % G
        top = -float("inf")
        total = 0.0
        out = tl.zeros([SIZE], tl.float32)
        for span in range(0, count, UNROLL):
            for step in tl.static_range(UNROLL):
                # Behind the last span the new part is exactly nothing.
                here = span + step < count
                new_at = at + (span + step) * G
                new_top = tl.load(tops + new_at, mask=here, other=-float("inf"))
                new_total = tl.load(totals + new_at, mask=here, other=0.0)
                new_out = tl.load(outs + new_at * D + dims, mask=ok & here, other=0.0)
                top, old, new = _fold(top, new_top)
                total = total * old + new_total * new
                out = out * old + new_out * new
        out = tl.div_rn(out, tl.broadcast_to(total, out.shape))
        tl.store(attended + (row.to(tl.int64) * heads + head) * D + dims, out, mask=ok)


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
    CHAINED: tl.constexpr = False,
):
    """The chunks of more than one token: a tile of queries reads span after span, folding."""
    b = tl.load(tile_owner + tl.program_id(0))
    kv_head = tl.program_id(1)
    await_previous(CHAINED)
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
            base = _bases(table, span, low_key, last, page_bytes) + row_bytes
            inside = (keys % 64) * KV_HEADS + kv_head
            k_at = pages + base + inside * D
            dots = tl.zeros([ROWS, 256], tl.int32)
            for begin in tl.static_range(0, SIZE, PIECE):
                dims = begin + tl.arange(0, PIECE)
                k = _load_turned(k_at, dims, D, SIZE)
                dots = tl.dot(_load_some(q_at, row_ok, dims, D), k, dots, out_dtype=tl.int32)
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
            top, old, new = _fold(top, largest)
            sums = tl.where(some, sums * old + total * new, sums)
            dims = tl.arange(0, PIECE)
            v = halves_of(_load(k_at + plane, dims, D, SIZE), PACKED)
            values = tl.dot(weights, v) * step[:, None]
            one = _folded(one, values, old, new, some)
            if PIECE < SIZE:
                v = halves_of(_load(k_at + plane, PIECE + dims, D, SIZE), PACKED)
                values = tl.dot(weights, v) * step[:, None]
                two = _folded(two, values, old, new, some)
        sums = tl.where(sums > 0, sums, 1.0)[:, None]
        to = out + q_row[:, None] * D + tl.arange(0, PIECE)[None, :]
        ok_out = row_ok[:, None] & (tl.arange(0, PIECE) < D)[None, :]
        tl.store(to, tl.div_rn(one, tl.broadcast_to(sums, one.shape)), mask=ok_out)
        if PIECE < SIZE:
            ok_out = row_ok[:, None] & (PIECE + tl.arange(0, PIECE) < D)[None, :]
            tl.store(to + PIECE, tl.div_rn(two, tl.broadcast_to(sums, two.shape)), mask=ok_out)
