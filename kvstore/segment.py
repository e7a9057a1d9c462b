"""A file of records, one behind the other: written at its end, read by position, wiped in place.

It is read with preadv, never mapped: whatever happens to the file, a read gives bytes or an error.
"""

from __future__ import annotations

import ctypes
import errno
import os
from typing import TYPE_CHECKING

from kvstore.errors import RecordDamaged
from kvstore.record import ALIGN, MAGIC, decode_head

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from kvstore.record import Head, Raw

    Failpoint = Callable[[str], None]

__all__ = ["Segment", "no_failpoint", "padded"]

MAX_PIECES = 512
"""Buffers of one system call; the usual limit is 1,024."""
CHUNK = 1 << 20
ZEROS = bytes(CHUNK)
HEAD_BYTES, HEAD_MOST = 1024, (1 << 16) + ALIGN
KEEP_SIZE, PUNCH_HOLE = 1, 2
_fallocate = ctypes.CDLL(None, use_errno=True).fallocate
_fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


def no_failpoint(name: str) -> None:
    """What production runs at a failpoint: nothing."""


def padded(size: int) -> int:
    """What a record of `size` bytes takes in a segment."""
    return size + -size % ALIGN


class Segment:
    """One file, made if need be. Reads may come from any thread, writes from one at a time.

    `failpoint` is called with the name of each point where a crash must be survived. Raises
    `OSError` when the file cannot be had.
    """

    def __init__(self, path: Path, failpoint: Failpoint = no_failpoint) -> None:
        self.path = path
        self._failpoint = failpoint
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self.end = padded(os.fstat(self._fd).st_size)
        self.gives_back = True  # until the system says that it cannot

    def __del__(self) -> None:
        # A reader may still be at work when its generation is dropped: the last one closes.
        if hasattr(self, "_fd"):
            os.close(self._fd)

    def append(self, records: Sequence[tuple[Raw, Raw]]) -> list[int]:
        """Writes records, each a head and a payload; gives their positions, multiples of 64.

        Raises `OSError` when the disk takes no more; the file then ends where it did before.
        """
        pieces: list[memoryview] = []
        places = []
        at = self.end
        for head, payload in records:
            size = len(head) + len(payload)
            places.append(at)
            pad = ZEROS[: -size % ALIGN]
            pieces += [memoryview(piece) for piece in (head, payload, pad) if piece]
            at += padded(size)
        try:
            self._write(pieces)
        except OSError:
            os.ftruncate(self._fd, self.end)
            raise
        self.end = at
        return places

    def read(self, place: int, into: Sequence[memoryview], *, wait: bool = True) -> bool:
        """Fills the buffers from `place` on.

        False when that would wait for the disk and `wait` is not set. Raises `RecordDamaged` when
        the file is too short or cannot be read.
        """
        size = sum(len(buffer) for buffer in into)
        try:
            got = os.preadv(self._fd, into, place, 0 if wait else os.RWF_NOWAIT)
            if got < size and not wait:
                return False
            while 0 < got < size:  # a signal, or more than one call gives
                more = os.preadv(self._fd, _behind(into, got), place + got)
                if not more:
                    break
                got += more
        except OSError as error:
            if not wait and error.errno in (errno.EAGAIN, errno.EOPNOTSUPP):
                return False
            raise RecordDamaged(f"{self.path.name}: {error.strerror}") from None
        if got != size:
            raise RecordDamaged(f"{self.path.name}: {got} of {size} bytes at {place}")
        return True

    def will_read(self, place: int, size: int) -> None:
        """Tells the system to fetch these bytes from the disk now."""
        os.posix_fadvise(self._fd, place, size, os.POSIX_FADV_WILLNEED)

    def scan(self) -> Iterator[tuple[int, Head]]:
        """Every record whose head is whole, by what is in the file alone: (place, head)."""
        size = os.fstat(self._fd).st_size
        at = 0
        while at < size:
            head = self._head(at)
            if head is not None and at + head.size + head.payload_bytes <= size:
                yield at, head
                at += padded(head.size + head.payload_bytes)
            else:
                at = self._next_magic(at + ALIGN, size)

    def wipe(self, extents: Iterable[tuple[int, int]]) -> None:
        """Overwrites (place, size) with zeros, on the disk too, then gives their pages back.

        Raises `OSError`.
        """
        merged: list[tuple[int, int]] = []
        for place, size in sorted(extents):
            if merged and sum(merged[-1]) == place:
                place, size = merged[-1][0], merged.pop()[1] + size
            merged.append((place, size))
        length = os.fstat(self._fd).st_size
        for place, size in merged:
            for at in range(place, min(place + size, length), CHUNK):
                left = min(CHUNK, place + size - at, length - at)
                if os.pwrite(self._fd, memoryview(ZEROS)[:left], at) != left:
                    raise OSError(errno.ENOSPC, "a record could not be overwritten")
            self._failpoint("record_wiped")
        os.fdatasync(self._fd)
        for place, size in merged:
            # Not every file system can; zeros suffice.
            if _fallocate(self._fd, KEEP_SIZE | PUNCH_HOLE, place, size):
                self.gives_back = False

    def leftovers(self, records: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
        """The places beside these (place, size) where something other than zeros lies."""
        size = os.fstat(self._fd).st_size
        found: list[tuple[int, int]] = []
        at = 0
        for place, record in [*sorted(records), (size, 0)]:
            while (at := self._next_data(at, place)) < place:
                step = min(CHUNK, place - at)
                if os.pread(self._fd, step, at).strip(b"\0"):
                    found.append((at, step))
                at += step
            at = place + padded(record)
        return found

    def sync(self) -> None:
        """Waits until what was written is on the disk. Raises `OSError`."""
        os.fdatasync(self._fd)

    def _write(self, pieces: list[memoryview]) -> None:
        at = self.end
        while pieces:
            written = os.pwritev(self._fd, pieces[:MAX_PIECES], at)
            if not written:
                raise OSError(errno.ENOSPC, "nothing was written")
            at += written
            done = 0
            while done < len(pieces) and written >= len(pieces[done]):
                written -= len(pieces[done])
                done += 1
            del pieces[:done]
            if written:
                pieces[0] = pieces[0][written:]
            self._failpoint("segment_written")

    def _head(self, place: int) -> Head | None:
        for size in (HEAD_BYTES, HEAD_MOST):
            try:
                return decode_head(os.pread(self._fd, size, place))
            except RecordDamaged:
                continue
            except OSError:
                break
        return None

    def _next_magic(self, at: int, size: int) -> int:
        """Where the next record may begin, from `at` on."""
        while (at := self._next_data(at, size)) < size:
            chunk = os.pread(self._fd, CHUNK, at)
            found = chunk.find(MAGIC)
            while found >= 0 and found % ALIGN:
                found = chunk.find(MAGIC, found + 1)
            if found >= 0:
                return at + found
            at += CHUNK
        return size

    def _next_data(self, at: int, end: int) -> int:
        """The first place from `at` on that is no hole, rounded down to a record's; or `end`."""
        if at >= end:
            return end
        try:
            found = os.lseek(self._fd, at, os.SEEK_DATA)
        except OSError as error:
            return end if error.errno == errno.ENXIO else at
        return min(end, max(at, found - found % ALIGN))


def _behind(buffers: Sequence[memoryview], size: int) -> list[memoryview]:
    """What is left of `buffers` behind their first `size` bytes."""
    left = []
    for buffer in buffers:
        left.append(buffer[min(size, len(buffer)) :])
        size -= min(size, len(buffer))
    return left
