"""A first look at the output head in 4 bits: which rows may hold the largest logit.

Most bytes that one greedy token reads are the head's. Its codes are looked at coarsely first, half
a byte each, and only rows whose logit may still be the largest are read as they are; the token is
the same. What makes that exact is a bound: with c a row's codes, q their coarse levels and x the
input's codes, the product is q x + r x, r = c - q, and |r x| <= |r| |x| (Cauchy-Schwarz). Alone it
rules nothing out. Three things narrow it down:

- The 16 levels are those that suit the inputs' codes, four inputs together (Lloyd's algorithm).
- Inputs of a head lie mostly along few directions. What r has along 16 of them is kept, in bytes,
  and multiplied exactly; the bound is left with what is across.
- Channels that are loud in x count more in |r| than in |x|: both are measured in weights that
  cancel out, as |D r| and |x / D|.

D and the directions are found from what the head was given on the page that smoothing reads, and
change no result, only how many rows stay. `coarse.h` does the work.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from backends.local.kernels.cpu import BLOCK
from backends.local.kernels.structs import CCoarse

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray
    from torch import Tensor

    from backends.local.kernels.structs import CLinear

__all__ = ["Coarseness", "coarsen", "coarseness"]

LEVELS, DIRECTIONS, TOGETHER = 16, 16, 4
_ROUNDS = 40
_ROWS = 4096  # whose codes say which levels suit
_LEAST = 1e-3  # of the median: what a weight is at least


@dataclass(frozen=True, slots=True)
class Coarseness:
    """How a head of K inputs is made coarse, G = K / 4 groups of them.

    `levels`: uint8 [G, 16], ascending, 128 higher than they are; `nearest`: uint8 [G, 256], the
    level of each code, 128 higher too. `weights`: float32 [K], D. `directions`: float32 [16, K],
    orthonormal, of D r and x / D.
    """

    levels: Tensor
    nearest: Tensor
    weights: Tensor
    directions: Tensor


def coarseness(codes: Tensor, inputs: Tensor | None) -> Coarseness | None:
    """What suits a head's codes (int8 [N, K]) and what it is given (float32 [S, K]).

    None where that is not known, or too little to have directions.
    """
    if inputs is None:
        return None
    inputs = inputs[inputs.norm(dim=1) > 0]
    if len(inputs) < DIRECTIONS or codes.shape[1] % (2 * TOGETHER) or not inputs.isfinite().all():
        return None
    counts = _histogram(codes[:: -(-len(codes) // _ROWS)].numpy())  # [K, 256]
    levels, nearest = _levels(counts.reshape(-1, TOGETHER, 256).sum(1))
    values = np.arange(-128, 128)
    away = values - np.take_along_axis(levels, nearest, 1)  # [G, 256]
    squares = (counts * np.repeat(away, TOGETHER, 0) ** 2).sum(1) / counts.sum(1)
    rest = torch.from_numpy(squares).float().clamp_min(_LEAST)
    inputs = inputs / inputs.norm(dim=1, keepdim=True)
    along = _directions(inputs)
    across = inputs - inputs @ along.T @ along
    weights = (across.square().mean(0) / rest) ** 0.25
    weights = (weights / weights.median()).nan_to_num(1.0, 1.0, 1.0).clamp_min(_LEAST)
    return Coarseness(
        torch.from_numpy((levels + 128).astype(np.uint8)),
        torch.from_numpy(nearest.astype(np.uint8)),
        weights,
        _directions(inputs / weights),
    )


def coarsen(
    halve: Callable[..., None], head: CLinear, by: Coarseness, blocks: Tensor
) -> tuple[CCoarse, list[Tensor]]:
    """Fills `blocks` (uint8 [N / 16, bytes]) from a packed head; `halve` is `greenroom_coarsen`.

    Returns what the kernels are told of them, and the tensors that it points into.
    """
    outputs, inputs = len(blocks) * BLOCK, len(by.weights)
    weights = by.weights
    directions = (by.directions * weights).T.contiguous()  # [K, 16], of rests
    along, squares = torch.empty(outputs, DIRECTIONS), torch.empty(outputs)
    tensors = (by.nearest, by.levels, weights, directions, blocks, along, squares)
    addresses = (tensor.data_ptr() for tensor in tensors)
    halve(ctypes.addressof(head), *addresses, torch.get_num_threads())
    step = float(along.abs().max()) / 127 or 1.0
    codes = torch.round(along / step)
    end = blocks.shape[1] - BLOCK * (DIRECTIONS + 4)
    packed = codes.view(-1, BLOCK, DIRECTIONS // TOGETHER, TOGETHER).transpose(1, 2)
    blocks[:, end:-64] = (packed + 128).to(torch.uint8).flatten(1)
    margin = inputs * 2**-20  # as in coarse.h
    across = (squares * (1 + margin) - along.square().sum(1)).clamp_min(0).sqrt()
    blocks[:, -64:] = across.view(-1, BLOCK).view(torch.uint8)
    lost = (along - codes * step).norm(dim=1) + margin * squares.sqrt()
    keep = [by.levels, (by.directions / weights).T.contiguous(), 1 / weights]
    coarse = CCoarse(
        blocks.data_ptr(),
        *(tensor.data_ptr() for tensor in keep),
        step,
        float((codes * step).norm(dim=1).max()),
        float(lost.max()),
        127.0 * inputs**0.5,
    )
    return coarse, [*keep, blocks]


def _directions(inputs: Tensor) -> Tensor:
    """The principal ones of rows [S, K]: float32 [16, K]."""
    _, _, rows = torch.linalg.svd(inputs.double(), full_matrices=False)
    found: Tensor = rows[:DIRECTIONS].float().contiguous()
    return found


def _histogram(codes: NDArray[np.int8]) -> NDArray[np.int64]:
    """How often each input has each code: [K, 256]."""
    inputs = codes.shape[1]
    places = codes.astype(np.int64) + (128 + 256 * np.arange(inputs))
    return np.bincount(places.ravel(), minlength=256 * inputs).reshape(inputs, 256)


def _levels(counts: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Levels [G, 16] that leave histograms [G, 256] the least squares, and each code's level."""
    values = np.arange(-128, 128)
    mass = counts + 1e-6  # a code that no row of the sample has wants a level near it, too
    density = np.cumsum(np.cbrt(mass), 1)
    at = (np.arange(LEVELS) + 0.5) / LEVELS
    levels = np.stack([np.interp(at, row / row[-1], values) for row in density])
    for _ in range(_ROUNDS):
        member = _nearest(levels)[:, :, None] == np.arange(LEVELS)  # [G, 256, 16]
        weight = np.einsum("gc,gcl->gl", mass, member)
        total = np.einsum("gc,gcl->gl", mass * values, member)
        levels = np.where(weight > 0, total / np.maximum(weight, 1e-12), levels)
    whole = np.rint(levels).clip(-127, 127)  # which all have a negative
    return whole.astype(np.int64), _nearest(whole)


def _nearest(levels: NDArray[np.float64]) -> NDArray[np.int64]:
    """Which of levels [G, 16], ascending, each value from -128 to 127 is next to: [G, 256]."""
    middles = (levels[:, 1:] + levels[:, :-1]) / 2
    above = np.arange(-128, 128)[:, None] > middles[:, None, :]
    return above.sum(2)  # type: ignore[no-any-return]
