# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
"""The likeliest token of logits on a device: the lowest id among equals, as numpy's argmax."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["BLOCK", "argmax"]

BLOCK = 4096


@triton.jit
def _best_of_block(logits, tops, ids, V, BLOCKS: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    columns = block * BLOCK + tl.arange(0, BLOCK)
    values = tl.load(logits + row * V + columns, mask=columns < V, other=-float("inf"))
    values = tl.where(values != values, float("inf"), values)  # NaN shows as not finite
    top = tl.max(values, axis=0)
    best = tl.min(tl.where((values == top) & (columns < V), columns, 2147483647), axis=0)
    tl.store(tops + row * BLOCKS + block, top)
    tl.store(ids + row * BLOCKS + block, best)


@triton.jit
def _best_of_row(tops, ids, top, best, BLOCKS: tl.constexpr, SIZE: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    blocks = tl.arange(0, SIZE)
    ok = blocks < BLOCKS
    values = tl.load(tops + row * BLOCKS + blocks, mask=ok, other=-float("inf"))
    largest = tl.max(values, axis=0)
    candidates = tl.load(ids + row * BLOCKS + blocks, mask=ok, other=2147483647)
    tl.store(top + row, largest)
    tl.store(best + row, tl.min(tl.where(values == largest, candidates, 2147483647), axis=0))


def argmax(logits: Tensor, top: Tensor, best: Tensor) -> None:
    """Writes each row's largest logit into `top` float32 [W] and its id into `best` int32 [W].

    logits: float32 [W, V]. A row with a NaN has an infinite largest.
    """
    rows, vocabulary = logits.shape
    blocks = triton.cdiv(vocabulary, BLOCK)
    tops = torch.empty((rows, blocks), device=logits.device)
    ids = torch.empty((rows, blocks), device=logits.device, dtype=torch.int32)
    _best_of_block[(rows, blocks)](logits, tops, ids, vocabulary, BLOCKS=blocks, BLOCK=BLOCK)
    _best_of_row[(rows,)](tops, ids, top, best, BLOCKS=blocks, SIZE=triton.next_power_of_2(blocks))
