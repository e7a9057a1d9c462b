# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
"""The draws of a step on the device: `sampling.draw`, the same tokens, one number a row fetched.

A row's groups of 64 logits have a largest each; what reaches the 128th of these are at least 128
candidates, and seldom many more. One pass over the logits sums their weights and collects these;
one program a row then filters and draws among them. Sums are whole numbers, so it does not matter
that programs come in any order. Where the token lies further down (a wide distribution, and neither
top-k nor min-p), a second look takes 1024; beyond, the row is fetched and drawn from on the host.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
import triton
import triton.language as tl

from backends.local.gpu.arithmetic import exp_below
from backends.local.sampling import ROW, draw, table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from backends.local.kernels.batch import Drawing
    from backends.local.sampling import Draw

__all__ = ["LOOKS", "DeviceDraws", "Look", "launch"]

_BLOCK = 4096
_GROUP = 64


class Look(NamedTuple):
    """How many candidates at least, and at most; how many of them are compared at a time."""

    few: int
    room: int
    piece: int
    warps: int


LOOKS = Look(128, 256, 16, 4), Look(1024, 2048, 8, 16)
"""The second is for the rows alone whose token lies beyond the first."""

_WORDS = ROW.itemsize // 4
_NO_TOKEN, _UNSURE = -1, -2

_TEMPERATURE, _PENALTY, _FLOOR, _TOP_K, _BEGIN, _MASKED, _END, _WANTED = map(
    tl.constexpr, range(4, _WORDS)
)
"""Words of a `sampling.ROW`, behind two doubles."""

_LEAST = tl.constexpr(-21.0)


@triton.jit
def _float_at(rows, row, WORD: tl.constexpr):
    return tl.load(rows + row * 12 + WORD).to(tl.float32, bitcast=True)


@triton.jit
def _adjust(logits, rows, ids, V, MASKS: tl.constexpr, BLOCK: tl.constexpr):
    """The penalty on the ids that were seen, in place; with MASKS, the mask of the others."""
    row = tl.program_id(0).to(tl.int64)
    begin = tl.load(rows + row * 12 + (_MASKED if MASKS else _BEGIN))
    end = tl.load(rows + row * 12 + (_END if MASKS else _MASKED))
    at = begin + tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    ok = at < end
    to = logits + row * V + tl.load(ids + at, mask=ok, other=0)
    if MASKS:
        tl.store(to, -float("inf"), mask=ok)
    else:
        penalty = _float_at(rows, row, _PENALTY)
        x = tl.load(to, mask=ok, other=0.0)
        tl.store(to, tl.where(x > 0, tl.div_rn(x, penalty), x * penalty), mask=ok)


@triton.jit
def _best_of_groups(logits, tops, V, BLOCK: tl.constexpr, GROUP: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    columns = block * BLOCK + tl.arange(0, BLOCK)
    values = tl.load(logits + row * V + columns, mask=columns < V, other=-float("inf"))
    values = tl.where(values != values, float("inf"), values)  # NaN shows as not finite
    GROUPS: tl.constexpr = BLOCK // GROUP
    at = (row * tl.num_programs(1) + block) * GROUPS + tl.arange(0, GROUPS)
    tl.store(tops + at, tl.max(tl.reshape(values, [GROUPS, GROUP]), axis=1))


@triton.jit
def _weights(scaled):
    """exp in whole steps of 2**-30, cut off."""
    return (exp_below(scaled) * 1073741824.0).to(tl.int32)


@triton.jit
def _scale(x, best, temperature):
    """Greedy rows have no scale; theirs only keeps the order."""
    return tl.div_rn(x - best, tl.where(temperature == 0, 1.0, temperature))


@triton.jit
def _limits(rows, row, tops, FEW: tl.constexpr):
    """The largest logit, and what a candidate reaches: a logit, and one that is scaled."""
    best = tl.load(tops + row * FEW)
    lowest = tl.load(tops + row * FEW + FEW - 1)
    lowest = tl.where(_float_at(rows, row, _TEMPERATURE) == 0, best, lowest)
    # What min-p drops counts for top-k's number.
    floor = _float_at(rows, row, _FLOOR)
    some = tl.load(rows + row * 12 + _TOP_K) > 0
    return best, lowest, tl.where(some, _LEAST, tl.maximum(floor, _LEAST))


@triton.jit
def _collect(
    logits, rows, tops, sums, counts, values, ids, V,
    FEW: tl.constexpr, ROOM: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    best, lowest, least = _limits(rows, row, tops, FEW)
    columns = block * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(logits + row * V + columns, mask=columns < V, other=-float("inf"))
    scaled = _scale(x, best, _float_at(rows, row, _TEMPERATURE))
    total = tl.sum(_weights(scaled).to(tl.int64), axis=0)
    tl.store(sums + row * tl.num_programs(1) + block, total)
    held = (x >= lowest) & (scaled >= least)
    count = tl.sum(held.to(tl.int32), axis=0)
    if count > 0:
        first = tl.atomic_add(counts + row, count)
        at = first + tl.cumsum(held.to(tl.int32), axis=0) - 1
        ok = held & (at < ROOM)
        tl.store(values + row * ROOM + at, x, mask=ok)
        tl.store(ids + row * ROOM + at, columns, mask=ok)


@triton.jit
def _pick(
    rows, doubles, tops, sums, counts, values, ids, tokens, BLOCKS,
    FEW: tl.constexpr, ROOM: tl.constexpr, PIECE: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    temperature = _float_at(rows, row, _TEMPERATURE)
    top_k = tl.load(rows + row * 12 + _TOP_K)
    uniform = tl.load(doubles + row * 6)
    top_p = tl.load(doubles + row * 6 + 1)
    best, lowest, least = _limits(rows, row, tops, FEW)
    count = tl.load(counts + row)

    lanes = tl.arange(0, ROOM)
    x = tl.load(values + row * ROOM + lanes, mask=lanes < count, other=-float("inf"))
    id = tl.load(ids + row * ROOM + lanes, mask=lanes < count, other=2147483647)
    scaled = _scale(x, best, temperature)
    weight = _weights(scaled).to(tl.int64)
    rank = tl.zeros([ROOM], tl.int32)
    before = tl.zeros([ROOM], tl.int64)  # the weight of all that come before it
    for first in range(0, ROOM, PIECE):
        others = first + tl.arange(0, PIECE)
        other_x = tl.load(values + row * ROOM + others, mask=others < count, other=-float("inf"))
        other_id = tl.load(ids + row * ROOM + others, mask=others < count, other=2147483647)
        other_weight = _weights(_scale(other_x, best, temperature)).to(tl.int64)
        equal = (other_x[None, :] == x[:, None]) & (other_id[None, :] < id[:, None])
        ahead = (other_x[None, :] > x[:, None]) | equal
        rank += tl.sum(ahead.to(tl.int32), axis=1)
        before += tl.sum(tl.where(ahead, other_weight[None, :], 0), axis=1)

    # Whoever is no candidate weighs nothing, or is dropped by min-p or top-k.
    whole = (_scale(lowest, best, temperature) < least) | ((top_k > 0) & (top_k <= count))
    sure = (count <= ROOM) & ((top_k <= count) | whole)
    held = (lanes < count) & ((top_k == 0) | (rank < top_k))
    blocks = tl.arange(0, SIZE)
    total = tl.sum(tl.load(sums + row * BLOCKS + blocks, mask=blocks < BLOCKS, other=0), axis=0)
    total = tl.where(top_k > 0, tl.sum(tl.where(held, weight, 0), axis=0), total)
    held = held & (scaled >= _float_at(rows, row, _FLOOR))
    here = tl.sum(tl.where(held, weight, 0), axis=0)
    kept = tl.where(whole, here, total)
    if top_p == 1:
        sure = sure & (whole | (least == _LEAST))  # else it is not known how much min-p keeps
    else:
        needed = top_p * total.to(tl.float64)
        sure = sure & (whole | (here.to(tl.float64) >= needed))
        held = held & (before.to(tl.float64) < needed)
        kept = tl.sum(tl.where(held, weight, 0), axis=0)
    at = tl.minimum((uniform * kept.to(tl.float64)).to(tl.int64), kept - 1)
    drawn = held & (before <= at) & (at < before + weight)
    if temperature == 0:
        sure = count <= ROOM
        drawn = (lanes < count) & (rank == 0)
    sure = sure & (tl.sum(drawn.to(tl.int32), axis=0) == 1)
    token = tl.where(sure, tl.sum(tl.where(drawn, id, 0), axis=0), -2)
    broken = (best == float("inf")) | (best == -float("inf"))
    broken = broken | (tl.load(rows + row * 12 + _WANTED) == 0)
    tl.store(tokens + row, tl.where(broken, -1, token))


class DeviceDraws:
    """Draws tokens from logits that lie on a device. `fetched`: whole rows that this has taken."""

    def __init__(self) -> None:
        self.fetched = 0

    def begin(self, logits: Tensor, draws: Sequence[Draw | None]) -> Drawing:
        """Launches the draws of `sampling.draw_rows`; uses the logits float32 [W, V] up."""
        first = launch(logits, draws, LOOKS[0])
        return lambda: self._finish(logits, draws, first.tolist())

    def _finish(
        self, logits: Tensor, draws: Sequence[Draw | None], tokens: list[int]
    ) -> list[int | None]:
        """The tokens of the first look, where it was sure; of further ones, where it was not."""
        rest = {
            row: ask._replace(seen=ask.seen[:0], masked=ask.masked[:0])  # they are applied
            for row, (token, ask) in enumerate(zip(tokens, draws, strict=True))
            if token == _UNSURE and ask is not None
        }
        if rest:
            rows = torch.tensor(list(rest), device=logits.device)
            again = launch(logits.index_select(0, rows), list(rest.values()), LOOKS[1])
            for (row, ask), token in zip(rest.items(), again.tolist(), strict=True):
                if token == _UNSURE:
                    self.fetched += 1
                    token = draw(logits[row].cpu().numpy(), ask)
                tokens[row] = token
        return [None if token == _NO_TOKEN else token for token in tokens]


def launch(logits: Tensor, draws: Sequence[Draw | None], look: Look) -> Tensor:
    """int32 [W] on the device: tokens; -1 where there is none, -2 where it is not among the few.

    Applies penalties and masks to the logits in place.
    """
    assert logits.is_contiguous()
    count, vocabulary = logits.shape
    asked, ids = table(draws)
    block = torch.from_numpy(np.concatenate([asked.view(np.int32), ids]))
    if logits.is_cuda:
        block = block.pin_memory().to(logits.device, non_blocking=True)
    rows, ids_there = block[: count * _WORDS], block[count * _WORDS :]
    seen = int((asked["masked"] - asked["begin"]).max())
    masked = int((asked["end"] - asked["masked"]).max())
    for most, masks in ((seen, False), (masked, True)):  # an id may be both
        if most:
            _adjust[(count, triton.cdiv(most, 1024))](
                logits, rows, ids_there, vocabulary,
                MASKS=masks, BLOCK=1024, enable_fp_fusion=False,
            )  # fmt: skip

    def made(*sizes: int, dtype: torch.dtype) -> Tensor:
        return torch.empty(sizes, dtype=dtype, device=logits.device)

    grid = (count, triton.cdiv(vocabulary, _BLOCK))
    tops = made(count, grid[1] * (_BLOCK // _GROUP), dtype=torch.float32)
    _best_of_groups[grid](logits, tops, vocabulary, BLOCK=_BLOCK, GROUP=_GROUP)
    few = min(look.few, triton.cdiv(vocabulary, _GROUP))
    tops = tops.topk(few).values
    sums = made(*grid, dtype=torch.int64)
    counts = torch.zeros(count, dtype=torch.int32, device=logits.device)
    values = made(count, look.room, dtype=torch.float32)
    candidates = made(count, look.room, dtype=torch.int32)
    _collect[grid](
        logits, rows, tops, sums, counts, values, candidates, vocabulary,
        FEW=few, ROOM=look.room, BLOCK=_BLOCK, num_warps=8, enable_fp_fusion=False,
    )  # fmt: skip
    tokens = made(count, dtype=torch.int32)
    _pick[(count,)](
        rows, rows.view(torch.float64), tops, sums, counts, values, candidates, tokens, grid[1],
        FEW=few, ROOM=look.room, PIECE=look.piece, SIZE=triton.next_power_of_2(grid[1]),
        num_warps=look.warps, enable_fp_fusion=False,
    )  # fmt: skip
    return tokens
