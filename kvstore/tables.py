"""The page tables of running sequences, a row each, so that a step gathers them in one go. Pure.

Row r of a group: the pages [first[r], first[r] + counts[r]) of the sequence, counted in blocks from
its first token; page first[r] + j lies in slot slots[r, j]. What stands behind is of no meaning,
but is always the number of some slot.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    Ints = NDArray[np.int32]

__all__ = ["GroupRows", "PageTables"]

ROWS, PAGES = 16, 16


class GroupRows:
    """The tables of one group. Not thread-safe."""

    def __init__(self) -> None:
        self.first: Ints = np.zeros(ROWS, np.int32)
        self.counts: Ints = np.zeros(ROWS, np.int32)
        self.slots: Ints = np.zeros((ROWS, PAGES), np.int32)

    def of(self, row: int) -> Ints:
        """The slots of a row; valid until the next change."""
        held: Ints = self.slots[row, : self.counts[row]]
        return held

    def set(self, row: int, first: int, slots: Sequence[int]) -> None:
        """The row's pages from `first` on, instead of those before."""
        self.first[row], self.counts[row] = first, 0
        self.extend(row, slots)

    def extend(self, row: int, slots: Sequence[int]) -> None:
        """More pages behind."""
        count = int(self.counts[row])
        end = count + len(slots)
        if end > self.slots.shape[1]:
            self._grow(len(self.slots), max(end, 2 * self.slots.shape[1]))
        self.slots[row, count:end] = slots
        self.counts[row] = end

    def drop(self, row: int, pages: int) -> list[int]:
        """Lets go of the first `pages` pages; gives their slots."""
        held = self.of(row)
        gone: list[int] = held[:pages].tolist()
        held[:-pages] = held[pages:].copy()
        self.first[row] += pages
        self.counts[row] -= pages
        return gone

    def gather(self, rows: Sequence[int]) -> tuple[Ints, Ints]:
        """First pages [B] and slots [B, the widest] of these rows; copies."""
        if len(rows) == 1:  # what one stream waits for at every token
            (row,) = rows
            return self.first[row : row + 1].copy(), self.of(row)[None].copy()
        width = self.counts[rows].max()
        return self.first[rows], self.slots[rows, :width]

    def make_rows(self, rows: int) -> None:
        """Room for so many."""
        if rows > len(self.slots):
            self._grow(max(rows, 2 * len(self.slots)), self.slots.shape[1])

    def _grow(self, rows: int, pages: int) -> None:
        old = self.slots
        self.slots = np.zeros((rows, pages), np.int32)
        self.slots[: len(old), : old.shape[1]] = old
        more = rows - len(old)
        self.first = np.append(self.first, np.zeros(more, np.int32))
        self.counts = np.append(self.counts, np.zeros(more, np.int32))


class PageTables:
    """A `GroupRows` for each of `groups`; a sequence has the same row in all of them."""

    def __init__(self, groups: Iterable[int]) -> None:
        self.groups = {group: GroupRows() for group in groups}
        self._free: list[int] = []
        self._made = 0

    def take(self) -> int:
        """An empty row."""
        if self._free:
            return self._free.pop()
        self._made += 1
        for group in self.groups.values():
            group.make_rows(self._made)
        return self._made - 1

    def give_back(self, row: int) -> None:
        """The row is empty again and somebody else's next."""
        for group in self.groups.values():
            group.set(row, 0, ())
        self._free.append(row)
