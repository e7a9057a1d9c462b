"""The draws of a step in one call of the C++ kernels: the tokens of `sampling.draw`."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

import torch

from backends.local.sampling import all_greedy, table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from backends.local.kernels.cpu import CpuKernels
    from backends.local.sampling import Draw

__all__ = ["draw_rows"]


def draw_rows(
    kernels: CpuKernels,
    logits: Tensor,
    draws: Sequence[Draw | None],
    largest: int | None = None,
) -> list[int | None]:
    """`sampling.draw_rows` for logits float32 [W, V] on the host, which are used up.

    `largest`: the address of the largest of every 16 logits, [W, V / 16, rounded up], where that
    is known.
    """
    assert logits.is_contiguous()
    count, vocabulary = logits.shape
    tokens = (ctypes.c_int32 * count)()
    rows, ids = (None, None) if all_greedy(draws) else table(draws)
    kernels.draw(
        logits.data_ptr(),
        largest,
        None if rows is None else rows.ctypes.data,
        None if ids is None else ids.ctypes.data,
        tokens,
        count,
        vocabulary,
        torch.get_num_threads(),
    )
    return [
        None if draw is None or token < 0 else token
        for draw, token in zip(draws, tokens, strict=True)
    ]
