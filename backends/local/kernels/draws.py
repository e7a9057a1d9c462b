"""The draws of a step in one call of the C++ kernels: the tokens of `sampling.draw`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from backends.local.sampling import table

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
    largest: Tensor | None = None,
) -> list[int | None]:
    """`sampling.draw_rows` for logits float32 [W, V] on the host, which are used up.

    `largest`: [W, V / 16, rounded up], the largest of every 16 logits, where that is known.
    """
    assert logits.is_contiguous()
    count, vocabulary = logits.shape
    rows, ids = table(draws)
    tokens = torch.empty(count, dtype=torch.int32)
    kernels.draw(
        logits.data_ptr(),
        None if largest is None else largest.data_ptr(),
        rows.ctypes.data,
        ids.ctypes.data,
        tokens.data_ptr(),
        count,
        vocabulary,
        torch.get_num_threads(),
    )
    return [None if token < 0 else token for token in tokens.tolist()]
