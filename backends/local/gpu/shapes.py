"""The shapes that steps are padded to, and a step's numbers laid out as one block for one copy.

A CUDA graph repeats launches of fixed sizes on fixed addresses. So a step is padded up to a `Shape`
of a few sizes, and everything else that it needs are integers in one block (`Numbers`), which is
filled on the host and copied to the device in one go.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from backends.local.kernels.pages import PAGE_TOKENS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from backends.local.kernels.batch import Batch

    Ints = NDArray[np.int32]

__all__ = ["BATCHES", "Floor", "Numbers", "Shape", "Shapes", "shape_of", "steps_of_every_shape"]

BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
"""Numbers of sequences that steps are padded to; beyond the last, multiples of it."""

_FEW_PAGES = 32
"""A decode's table of global layers has no fewer columns: 2,048 tokens."""


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of a padded step: rows, sequences, rows with logits, tiles of prefill.

    `widths`: the columns of each group's page table. No tiles means a decode: one row a sequence.
    """

    tokens: int
    sequences: int
    wanted: int
    tiles: int
    widths: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Floor:
    """What steps are padded to at least, so that few shapes serve.

    `rows` and `sequences` are those of steps with prefill, `pages` of global layers' tables.
    """

    rows: int = 1
    sequences: int = 1
    pages: int = 1


def shape_of(batch: Batch, windows: Sequence[int | None], tile_tokens: int, floor: Floor) -> Shape:
    """The smallest shape that holds the batch. `windows`: of the layer groups, None for global."""
    tokens, sequences = len(batch.tokens), len(batch.lengths)
    decode = tokens == sequences
    padded = _padded(sequences if decode else max(sequences, floor.sequences))
    rows = padded if decode else _padded_rows(max(tokens, floor.rows))
    widths = []
    for table, window in zip(batch.tables, windows, strict=True):
        held = table.slots.shape[1]
        if window is None:
            widths.append(_pages(held, floor, decode=decode))
        else:
            # The window, the new tokens, and what `SequenceKV` keeps beside them.
            widths.append(max((window + (1 if decode else rows)) // PAGE_TOKENS + 5, held))
    return Shape(
        tokens=rows,
        sequences=padded,
        wanted=padded if len(batch.wanted) <= padded else _padded(len(batch.wanted)),
        tiles=0 if decode else rows // tile_tokens + padded,
        widths=tuple(widths),
    )


class Shapes:
    """The shapes of one model's steps, few of them: steps with prefill are padded to the most
    sequences that any step had, so the largest step should be the first.

    `graphed` is False where a shape costs nothing: each step then gets the smallest.
    """

    def __init__(
        self, windows: Sequence[int | None], tile_tokens: int, context: int, *, graphed: bool
    ) -> None:
        self._windows = windows
        self._tile_tokens = tile_tokens
        self._graphed = graphed
        self._floor = Floor(64, 1, -(-context // PAGE_TOKENS)) if graphed else Floor()

    def of(self, batch: Batch) -> Shape:
        """The shape to compute the batch in."""
        shape = shape_of(batch, self._windows, self._tile_tokens, self._floor)
        if self._graphed and shape.sequences > self._floor.sequences:
            self._floor = replace(self._floor, sequences=shape.sequences)
        return shape


def steps_of_every_shape(
    sequences: int, tokens: int, context: int
) -> Iterator[tuple[list[int], int]]:
    """Steps that take every shape once: the new tokens of its sequences, and how many the first of
    them has already.

    Up to `sequences` sequences of less than `context` tokens, `tokens` new ones a step. The step of
    the most sequences comes first, and of the others the largest.
    """
    pages, lengths = _power(-(-context // PAGE_TOKENS)), [context - 2]
    while pages // 4 >= _FEW_PAGES:
        pages //= 4
        lengths.append(pages * PAGE_TOKENS - 2)
    size = _padded(sequences)
    while size:
        for length in lengths:
            yield [1] * min(size, sequences), length
        size = size - BATCHES[-1] if size > BATCHES[-1] else size // 2
    most = min(tokens, sequences * (context - 1))
    rows = [64]
    while rows[-1] < most:
        rows.append(_padded_rows(rows[-1] + 1))
    for count in reversed(rows):
        whole, rest = divmod(min(count, most), context - 1)
        yield [context - 1] * whole + ([rest] if rest else []), 0


def _pages(held: int, floor: Floor, *, decode: bool) -> int:
    """Columns for `held` pages. Programs of spans that nobody has cost a decode of short sequences
    as much as its own, so it takes a fourth, or a fourth of that, where that is enough."""
    pages = _power(max(held, floor.pages))
    while decode and pages // 4 >= max(held, _FEW_PAGES):
        pages //= 4
    return pages


def _padded_rows(count: int) -> int:
    """Rows of a step with prefill: 64, 128, then at most an eighth of a power of two too many."""
    if count <= BATCHES[-1]:
        return _padded(count)
    step = max(128, _power(count) // 8)
    return -(-count // step) * step


def _padded(count: int) -> int:
    for size in BATCHES:
        if count <= size:
            return size
    return -(-count // BATCHES[-1]) * BATCHES[-1]


def _power(count: int) -> int:
    return 1 << (count - 1).bit_length()


class Numbers:
    """A step's integers, on the host and on the device, at addresses that never change."""

    def __init__(self, shape: Shape, device: torch.device) -> None:
        self.shape = shape
        sizes = {
            "tokens": shape.tokens,
            "positions": shape.tokens,
            "owners": shape.tokens,
            "starts": shape.sequences + 1,
            "lengths": shape.sequences,
            "wanted": shape.wanted,
            "tile_owner": shape.tiles,
            "tile_first": shape.tiles,
        }
        for group, width in enumerate(shape.widths):
            sizes[f"first_page{group}"] = shape.sequences
            sizes[f"slots{group}"] = shape.sequences * width
        places, at = {}, 0
        for name, size in sizes.items():
            places[name] = slice(at, at + size)
            at += size + -size % 4  # 16 bytes
        on_cuda = device.type == "cuda"
        self._host = torch.zeros(at, dtype=torch.int32, pin_memory=on_cuda)
        self._device = torch.zeros(at, dtype=torch.int32, device=device)
        self._copied = torch.cuda.Event() if on_cuda else None  # type: ignore[no-untyped-call]
        array = self._host.numpy()
        self._arrays = {name: array[place] for name, place in places.items()}
        self._tensors = {name: self._device[place] for name, place in places.items()}

    def __getitem__(self, name: str) -> Tensor:
        """An array on the device: int32, by its name above."""
        return self._tensors[name]

    def fill(self, batch: Batch, tile_tokens: int) -> None:
        """Writes the batch and its padding, and starts the copy on the current stream."""
        if self._copied is not None:
            self._copied.synchronize()  # the copy before has left the host's block
        shape, arrays = self.shape, self._arrays
        tokens, sequences = len(batch.tokens), len(batch.lengths)
        starts = batch.starts.numpy()
        counts = starts[1:] - starts[:-1]
        for name, values in (("tokens", batch.tokens), ("positions", batch.positions)):
            arrays[name][:tokens] = values.numpy()
            arrays[name][tokens:] = 0
        arrays["owners"][:tokens] = np.repeat(np.arange(sequences, dtype=np.int32), counts)
        arrays["owners"][tokens:] = -1
        # Sequences of padding have no rows, so no kernel finds anything to do for them.
        arrays["starts"][: sequences + 1] = starts
        arrays["starts"][sequences + 1 :] = tokens
        arrays["lengths"][:sequences] = batch.lengths.numpy()
        arrays["lengths"][sequences:] = 0
        arrays["wanted"][: len(batch.wanted)] = batch.wanted.numpy()
        arrays["wanted"][len(batch.wanted) :] = 0
        if shape.tiles:
            _lay_tiles(arrays["tile_owner"], arrays["tile_first"], counts, tile_tokens)
        for group, (table, width) in enumerate(zip(batch.tables, shape.widths, strict=True)):
            arrays[f"first_page{group}"][:sequences] = table.first_page.numpy()
            slots = arrays[f"slots{group}"].reshape(shape.sequences, width)
            slots[:sequences, : table.slots.shape[1]] = table.slots.numpy()
        self._device.copy_(self._host, non_blocking=True)
        if self._copied is not None:
            self._copied.record()


def _lay_tiles(owners: Ints, firsts: Ints, counts: Ints, tile_tokens: int) -> None:
    """Tiles of `tile_tokens` queries for every sequence that has more than one new token."""
    owners[:] = -1
    at = 0
    for sequence in np.flatnonzero(counts > 1):
        tiles = -(-int(counts[sequence]) // tile_tokens)
        owners[at : at + tiles] = sequence
        firsts[at : at + tiles] = np.arange(tiles, dtype=np.int32) * tile_tokens
        at += tiles
