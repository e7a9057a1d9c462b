# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
"""What samplers want of logits that lie on a device: the likeliest token, the likeliest few.

The likeliest token is the lowest id among equals, as numpy's argmax.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, overload

import torch
import triton
import triton.language as tl

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

__all__ = ["BLOCK", "DeviceRow", "DeviceRows", "argmax"]

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


class DeviceRows(Sequence["DeviceRow"]):
    """The rows of a step's logits [W, V] on a device, as `backends.local.sampling.Row`s.

    Making it waits for the step. Only what samplers ask for is copied, all rows at once.
    """

    def __init__(self, logits: Tensor) -> None:
        self._logits = logits
        count = len(logits)
        width = count + -count % 4  # 16 bytes: an address less round is another kernel
        found = torch.empty((2, width), dtype=torch.int32, device=logits.device)
        argmax(logits, found[0].view(torch.float32), found[1])
        host = found[:, :count].cpu()
        self._best = list(zip(host[1].tolist(), host[0].view(torch.float32).tolist(), strict=True))
        self._top: tuple[NDArray[np.int64], NDArray[np.float32]] | None = None
        self._values: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self._best)

    @overload
    def __getitem__(self, index: int) -> DeviceRow: ...

    @overload
    def __getitem__(self, index: slice) -> list[DeviceRow]: ...

    def __getitem__(self, index: int | slice) -> DeviceRow | list[DeviceRow]:
        if isinstance(index, slice):
            return [DeviceRow(self, at) for at in range(*index.indices(len(self)))]
        if not 0 <= index < len(self._best):
            raise IndexError(index)
        return DeviceRow(self, index)

    def best(self, index: int) -> tuple[int, float]:
        return self._best[index]

    def top(self, index: int, count: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        count = min(count, self._logits.shape[1])
        if self._top is None or self._top[0].shape[1] < count:
            values, ids = self._logits.topk(count, sorted=False)
            ids, order = ids.sort()
            self._top = ids.cpu().numpy(), values.gather(1, order).cpu().numpy()
        return self._top[0][index], self._top[1][index]

    def values(self, index: int) -> NDArray[np.float32]:
        if self._values is None:
            self._values = self._logits.cpu().numpy()
        row: NDArray[np.float32] = self._values[index]
        return row


@dataclass(frozen=True, slots=True)
class DeviceRow:
    """Implements `backends.local.sampling.Row`."""

    rows: DeviceRows
    index: int

    def best(self) -> tuple[int, float]:
        return self.rows.best(self.index)

    def top(self, count: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        return self.rows.top(self.index, count)

    def values(self) -> NDArray[np.float32]:
        return self.rows.values(self.index)
