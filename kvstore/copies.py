"""Whole pages between a CUDA device and pinned memory, many at once, and nobody waits.

A restored or kept prefix is one `Stage`: one block of pinned memory with its pages end to end,
copied in one go on a stream of its own, and scattered to (or gathered from) the slots on the
device. Pinned memory is torch's to keep: what is freed serves the next stage once its copy is done.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    Bytes = NDArray[np.uint8]
    Place = tuple[int, int, int]
    """Group, row of the stage, slot of the device."""

__all__ = ["PageCopies", "Stage", "gather", "scatter"]

_WORD = 8  # pages are copied as 64-bit words; a page is a multiple of them


class Stage:
    """Memory for `counts` pages of each group, and for the places they belong to.

    In front lie the places: for each group in order its rows, then its slots, as int64.
    """

    def __init__(
        self, counts: Mapping[int, int], page_bytes: Mapping[int, int], *, pinned: bool
    ) -> None:
        self._counts = dict(counts)
        self._begins: dict[int, tuple[int, int]] = {}  # of a group's places, and of its pages
        places, end = 0, 2 * sum(counts.values())
        self._words = {group: page_bytes[group] // _WORD for group in counts}
        for group, count in counts.items():
            self._begins[group] = places, end
            places += 2 * count
            end += count * self._words[group]
        self.memory = torch.empty(end, dtype=torch.int64, pin_memory=pinned)
        self.places = self.memory[:places]
        self._pages = {group: self.pages(self.memory, group).numpy() for group in counts}

    @property
    def size(self) -> int:
        """In bytes."""
        return self.memory.nbytes

    def pages(self, memory: Tensor, group: int) -> Tensor:
        """The pages of a group, int64 [count, words], in `memory` or a copy of it."""
        begin, count, words = self._begins[group][1], self._counts[group], self._words[group]
        return memory[begin : begin + count * words].view(count, words)

    def page(self, group: int, row: int) -> Bytes:
        """One page on the host; a view."""
        page: Bytes = self._pages[group][row].view(np.uint8)
        return page

    def place(self, places: Sequence[Place]) -> dict[int, tuple[slice, slice]]:
        """Notes rows and slots; says for each group where in `places` they are."""
        noted = {}
        array = self.places.numpy()
        for group, (at, _) in self._begins.items():
            of_group = [(row, slot) for each, row, slot in places if each == group]
            count = len(of_group)
            if count:
                noted[group] = slice(at, at + count), slice(at + count, at + 2 * count)
                array[at : at + 2 * count] = np.array(of_group).T.ravel()
        return noted


def scatter(
    stage: Stage,
    there: Tensor,
    noted: Mapping[int, tuple[slice, slice]],
    arenas: Mapping[int, Tensor],
) -> None:
    """Writes pages of `there`, a copy of the stage's memory on the arenas' device, to their slots.

    `noted` is what `Stage.place` said.
    """
    for group, (rows, slots) in noted.items():
        pages = stage.pages(there, group).index_select(0, there[rows])
        arenas[group].view(torch.int64).index_copy_(0, there[slots], pages)


def gather(
    places: Tensor, noted: Mapping[int, tuple[slice, slice]], arenas: Mapping[int, Tensor]
) -> dict[int, Tensor]:
    """The pages in the noted slots, int64 [count, words] a group, in the order of their rows.

    `places` is a stage's, on the arenas' device; every row is placed, in order.
    """
    return {
        group: arenas[group].view(torch.int64).index_select(0, places[slots])
        for group, (_, slots) in noted.items()
    }


class PageCopies:
    """The copies of one device, whose `arenas` (uint8 [slots, page bytes] a group) they fill.

    Only one thread calls it, the one that launches the steps: copies are in order with those.
    """

    def __init__(self, arenas: Mapping[int, Tensor]) -> None:
        self._arenas = dict(arenas)
        self._device = next(iter(arenas.values())).device
        self._page_bytes = {group: pages.shape[1] for group, pages in arenas.items()}
        self._in = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        self._out = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]

    def stage(self, counts: Mapping[int, int]) -> Stage:
        """Room for so many pages of each group; any thread."""
        return Stage(counts, self._page_bytes, pinned=True)

    def bring(self, stage: Stage, places: Sequence[Place]) -> None:
        """Starts to copy pages of the stage to their slots; what is launched later sees them."""
        noted = stage.place(places)
        launched = torch.cuda.current_stream(self._device)
        with torch.cuda.stream(self._in):
            there = stage.memory.to(self._device, non_blocking=True)
            self._in.wait_stream(launched)  # the slots' last readers
            scatter(stage, there, noted, self._arenas)
        launched.wait_stream(self._in)

    def fetch(self, pages: Sequence[tuple[int, int]]) -> tuple[Stage, torch.cuda.Event]:
        """Starts to copy pages, each a group and a slot, as the steps launched so far leave them.

        They are in the stage, each group's in order, once the event has come; their slots may be
        written again by what is launched later.
        """
        counts: dict[int, int] = {}
        places = []
        for group, slot in pages:
            places.append((group, counts.get(group, 0), slot))
            counts[group] = counts.get(group, 0) + 1
        stage = self.stage(counts)
        noted = stage.place(places)
        launched = torch.cuda.current_stream(self._device)
        found = gather(stage.places.to(self._device, non_blocking=True), noted, self._arenas)
        self._out.wait_stream(launched)
        with torch.cuda.stream(self._out):
            for group, held in found.items():
                stage.pages(stage.memory, group).copy_(held, non_blocking=True)
                held.record_stream(self._out)
            done = torch.cuda.Event()  # type: ignore[no-untyped-call]
            done.record(self._out)
        return stage, done
