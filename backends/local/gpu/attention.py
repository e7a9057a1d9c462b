# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
"""Attention over pages of int8 KV: `reference.attend` in its own order, page by page.

The 16-bit codes of queries and softmax weights are two 8-bit digits, which tensor cores multiply
with 8-bit keys and values in half precision: every sum stays below 2**24, so float32 counts it
exactly. All query heads of a KV head share a tile, and a decode's two digits do too: they fill rows
that the tensor cores would compute anyway.

A decode is spread over the sequence by pages, each giving its own result, and `merge_pages` folds
them in ascending order, which is the reference's order: how pages are dealt out changes no bit.
"""

from __future__ import annotations

import triton
import triton.language as tl

from backends.local.gpu.arithmetic import codes_of, exp, halves_sum, inverse_of

__all__ = ["attend_chunks", "decode_pages", "merge_pages"]


@triton.jit
def _stacked(codes, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DIGIT: tl.constexpr):
    """The high digits [ROWS, COLUMNS] of 16-bit codes above their low ones: [2 ROWS, COLUMNS]."""
    high = (codes + 128) >> 8
    both = tl.join(high.to(DIGIT), (codes - (high << 8)).to(DIGIT))
    return tl.reshape(tl.permute(both, (2, 0, 1)), [2 * ROWS, COLUMNS])


@triton.jit
def _whole(both, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """256 times the upper half plus the lower: exact products in, the total rounded once."""
    both = tl.reshape(both, [2, ROWS, COLUMNS])
    by = tl.where(tl.arange(0, 2) == 0, 256.0, 1.0)
    return tl.sum(both * by[:, None, None], axis=0)


@triton.jit
def _digit_of(codes, digit):
    """Digit 0, 1 or 2 (7 bits each, the highest signed) of 16-bit codes, and 0 for 3; int8."""
    middle, low = (codes >> 7) & 127, codes & 127
    rest = tl.where(digit == 1, middle, tl.where(digit == 2, low, 0))
    return tl.where(digit == 0, codes >> 14, rest).to(tl.int8)


@triton.jit
def _undigit(sums, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """What sums over digits 0 to 3, one above the other, stand for: int32 [ROWS, COLUMNS]."""
    digit = tl.arange(0, 4)
    by = tl.where(digit == 0, 1 << 14, tl.where(digit == 1, 1 << 7, tl.where(digit == 2, 1, 0)))
    return tl.sum(tl.reshape(sums, [4, ROWS, COLUMNS]) * by[:, None, None], axis=0)


@triton.jit
def _weigh(scores, seen, v_scale, ROWS: tl.constexpr):
    """A page's largest score, sum of weights, weights times scales as codes, and those' scale.

    scores: [ROWS, 64]. The largest is -inf where a row sees nothing.
    """
    largest = tl.max(tl.where(seen, scores, -float("inf")), axis=1)
    base = tl.where(largest == -float("inf"), 0.0, largest)
    weights = tl.where(seen, exp(scores - base[:, None]), 0.0)
    total = halves_sum(weights, ROWS, 64, 6)
    scaled = tl.where(seen, weights * v_scale[None, :], 0.0)
    most = tl.max(scaled, axis=1)
    codes = codes_of(scaled, inverse_of(most, 32767.0)[:, None])
    return largest, total, codes, most * (1 / 32767)


@triton.jit(do_not_specialize=["width"])
def decode_pages(
    q_codes,  # int16 [T, Hq, D]
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
    SHARE: tl.constexpr,  # pages a program
    P: tl.constexpr,
    KV_HEADS: tl.constexpr,
    G: tl.constexpr,
    ROWS: tl.constexpr,  # at least G and 8
    D: tl.constexpr,
    SIZE: tl.constexpr,
    DIGIT: tl.constexpr,
):
    """Each page's own result for the sequences that have one new token."""
    b = tl.program_id(0)
    kv_head = tl.program_id(1)
    row = tl.load(starts + b)
    length = tl.load(lengths + b)
    first = 0
    if WINDOW:
        first = tl.maximum(length - WINDOW, 0) // 64
    begin = first + tl.program_id(2) * SHARE
    end = tl.minimum((length + 63) // 64, begin + SHARE)
    if tl.load(starts + b + 1) - row != 1:
        end = begin
    if begin < end:
        dims = tl.arange(0, SIZE)
        dim_ok = dims < D
        tokens = tl.arange(0, 64)
        heads = tl.arange(0, ROWS)
        head_ok = heads < G
        q_row = row.to(tl.int64) * (KV_HEADS * G) + kv_head * G
        by_query = tl.load(q_scale + q_row + heads, mask=head_ok, other=0.0)
        four = tl.arange(0, 4 * ROWS)  # the heads' first digits, then their second ones, ...
        q = tl.load(
            q_codes + (q_row + four % ROWS)[:, None] * D + dims[None, :],
            mask=(four % ROWS < G)[:, None] & dim_ok[None, :],
            other=0,
        ).to(tl.int32)
        q = _digit_of(q, (four // ROWS)[:, None])
        plane: tl.constexpr = 64 * KV_HEADS * D
        table = slots + b * width - tl.load(first_page + b)
        inside = (tokens * KV_HEADS + kv_head)[:, None] * D + dims[None, :]
        for page in range(begin, end):
            base = tl.load(table + page).to(tl.int64) * page_bytes + row_bytes
            k = tl.load(pages + base + inside, mask=dim_ok[None, :], other=0)
            v = tl.load(pages + base + plane + inside, mask=dim_ok[None, :], other=0)
            keys = page * 64 + tokens
            seen = keys < length
            if WINDOW:
                seen = seen & (keys >= length - WINDOW)
            scales = halves + base // 2 + plane + tokens * KV_HEADS + kv_head
            k_scale = tl.load(scales, mask=seen, other=0.0).to(tl.float32)
            v_scale = tl.load(scales + 64 * KV_HEADS, mask=seen, other=0.0).to(tl.float32)
            dots = _undigit(tl.dot(q, tl.trans(k), out_dtype=tl.int32), ROWS, 64).to(tl.float32)
            scores = dots * by_query[:, None] * k_scale[None, :]
            largest, total, codes, step = _weigh(scores, seen[None, :], v_scale, ROWS)
            values = _whole(tl.dot(_stacked(codes, ROWS, 64, DIGIT), v.to(DIGIT)), ROWS, SIZE)
            at = ((b * KV_HEADS + kv_head) * P + page - first).to(tl.int64) * G + heads
            tl.store(tops + at, largest, mask=head_ok)
            tl.store(totals + at, total, mask=head_ok)
            tl.store(
                outs + at[:, None] * D + dims[None, :],
                values * step[:, None],
                mask=head_ok[:, None] & dim_ok[None, :],
            )


@triton.jit
def merge_pages(
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
    """Folds the pages of one sequence in ascending order; the codes of all heads' output."""
    b = tl.program_id(0)
    row = tl.load(starts + b)
    if tl.load(starts + b + 1) - row == 1:
        length = tl.load(lengths + b)
        first = 0
        if WINDOW:
            first = tl.maximum(length - WINDOW, 0) // 64
        count = (length + 63) // 64 - first
        heads = tl.arange(0, HEAD_ROWS)
        dims = tl.arange(0, SIZE)
        head_ok = heads < HEADS
        ok = head_ok[:, None] & (dims < D)[None, :]
        at = (b * (HEADS // G) + heads // G).to(tl.int64) * (P * G) + heads % G
        top = tl.full([HEAD_ROWS], -float("inf"), tl.float32)
        total = tl.zeros([HEAD_ROWS], tl.float32)
        out = tl.zeros([HEAD_ROWS, SIZE], tl.float32)
        for page in range(0, count, UNROLL):
            for step in tl.static_range(UNROLL):
                here = page + step < count
                next_at = at + (page + step) * G
                new_top = tl.load(tops + next_at, mask=head_ok & here, other=-float("inf"))
                new_total = tl.load(totals + next_at, mask=head_ok & here, other=0.0)
                new_out = tl.load(
                    outs + next_at[:, None] * D + dims[None, :], mask=ok & here, other=0.0
                )
                # Behind the last page, and in rows of padding, the new part is exactly nothing.
                larger = tl.maximum(top, new_top)
                base = tl.where(larger == -float("inf"), 0.0, larger)
                old, new = exp(top - base), exp(new_top - base)
                total = total * old + new_total * new
                out = out * old[:, None] + new_out * new[:, None]
                top = larger
        out = tl.div_rn(out, tl.broadcast_to(tl.where(head_ok, total, 1.0)[:, None], out.shape))
        out = tl.where(ok, out, 0.0)
        largest = tl.max(tl.max(tl.abs(out), axis=1), axis=0)
        codes = codes_of(out, inverse_of(largest, MAX_CODE * 1.0))
        to = digits + row.to(tl.int64) * (HEADS * D) + heads[:, None] * D + dims[None, :]
        tl.store(to, (codes >> 7).to(tl.int8), mask=ok)
        tl.store(to + plane, (codes & 127).to(tl.int8), mask=ok)
        tl.store(row_scale + row, largest * (1 / MAX_CODE))


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
    DIGIT: tl.constexpr,
):
    """The chunks of more than one token: a tile of queries reads page after page, merging."""
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
        dims = tl.arange(0, SIZE)
        dim_ok = dims < D
        ok = row_ok[:, None] & dim_ok[None, :]
        q_row = (start + token).to(tl.int64) * (KV_HEADS * G) + kv_head * G + head
        q = tl.load(q_codes + q_row[:, None] * D + dims[None, :], mask=ok, other=0).to(tl.int32)
        by_query = tl.load(q_scale + q_row, mask=row_ok, other=0.0)
        q_high, q_middle, q_low = _digit_of(q, 0), _digit_of(q, 1), _digit_of(q, 2)
        tokens = tl.arange(0, 64)
        plane: tl.constexpr = 64 * KV_HEADS * D
        table = slots + b * width - tl.load(first_page + b)
        inside = (tokens * KV_HEADS + kv_head)[:, None] * D + dims[None, :]
        top = tl.full([ROWS], -float("inf"), tl.float32)
        sums = tl.zeros([ROWS], tl.float32)
        acc = tl.zeros([ROWS, SIZE], tl.float32)
        begin = 0
        before = length - count + first_token
        if WINDOW:
            begin = tl.maximum(before - WINDOW + 1, 0) // 64
        last = tl.minimum(before + TOKENS, length)  # keys that the tile's last token sees
        for page in range(begin, (last + 63) // 64):
            base = tl.load(table + page).to(tl.int64) * page_bytes + row_bytes
            k = tl.load(pages + base + inside, mask=dim_ok[None, :], other=0)
            keys = page * 64 + tokens
            scales = halves + base // 2 + plane + tokens * KV_HEADS + kv_head
            k_scale = tl.load(scales, mask=keys < last, other=0.0).to(tl.float32)
            v_scale = tl.load(scales + 64 * KV_HEADS, mask=keys < last, other=0.0).to(tl.float32)
            seen = keys[None, :] <= here[:, None]
            if WINDOW:
                seen = seen & (keys[None, :] > here[:, None] - WINDOW)
            k = tl.trans(k)
            dots = tl.dot(q_high, k, out_dtype=tl.int32) * (1 << 14)
            dots += tl.dot(q_middle, k, out_dtype=tl.int32) * (1 << 7)
            dots += tl.dot(q_low, k, out_dtype=tl.int32)
            scores = dots.to(tl.float32) * by_query[:, None] * k_scale[None, :]
            largest, total, codes, step = _weigh(scores, seen, v_scale, ROWS)
            v = tl.load(pages + base + plane + inside, mask=dim_ok[None, :], other=0).to(DIGIT)
            up = (codes + 128) >> 8
            values = tl.dot(up.to(DIGIT), v) * 256.0 + tl.dot((codes - (up << 8)).to(DIGIT), v)
            values = values * step[:, None]
            some = largest > -float("inf")
            larger = tl.maximum(top, largest)
            safe = tl.where(larger == -float("inf"), 0.0, larger)
            old, new = exp(top - safe), exp(largest - safe)
            sums = tl.where(some, sums * old + total * new, sums)
            merged = acc * old[:, None] + values * new[:, None]
            acc = tl.where(some[:, None], merged, acc)
            top = larger
        sums = tl.where(sums > 0, sums, 1.0)
        acc = tl.div_rn(acc, tl.broadcast_to(sums[:, None], acc.shape))
        tl.store(out + q_row[:, None] * D + dims[None, :], acc, mask=ok)
