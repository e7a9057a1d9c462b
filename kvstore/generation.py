"""One generation of the disk tier: a segment of records and an index that says where each lies.

    gen-00000001/records     the records, docs/kv-record.md, one behind the other
    gen-00000001/data.mdb    LMDB: block key -> place, sizes, owner, checksum of the row

Memory has the index as well (`held`), and it is the truth while the store is open: LMDB is behind
it, and made anew from it when the keeper was lost. Where LMDB's file is damaged or does not fit the
segment, the segment is read instead: every record says what it is. What lies in the segment beside
the records of the index (a crash came between the two) is taken up when it is opened, or, where it
is not sound, overwritten with zeros, so that nobody's bytes can hide there.
"""

from __future__ import annotations

import contextlib
import shutil
import struct
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import xxhash

from kvstore.errors import RecordDamaged, StoreError
from kvstore.keeper import KeeperLost
from kvstore.record import check, decode_key, encode_head, encode_key
from kvstore.segment import Segment, no_failpoint, padded

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from kvstore.api import Block, BlockKey
    from kvstore.keeper import Keeper, Row
    from kvstore.segment import Failpoint

    Wanted = tuple[BlockKey, "Entry", memoryview]

__all__ = ["Entry", "Generation", "decode_row", "encode_row"]

INDEX_BYTES = 256
"""What a record takes in the index, about."""
_VALUE = struct.Struct(">QII")
_CHECK = struct.Struct(">Q")


@dataclass(frozen=True, slots=True)
class Entry:
    """Where the record of a block lies in its segment, and whose it is."""

    place: int
    head_bytes: int
    payload_bytes: int
    owner: bytes

    @property
    def extent(self) -> tuple[int, int]:
        """Place and size of the record, padding included."""
        return self.place, padded(self.head_bytes + self.payload_bytes)


def encode_row(key: BlockKey, entry: Entry) -> Row:
    """An entry as LMDB holds it."""
    raw = encode_key(key)
    value = _VALUE.pack(entry.place, entry.head_bytes, entry.payload_bytes) + entry.owner
    return raw, value + _CHECK.pack(xxhash.xxh3_64_intdigest(raw + value))


def decode_row(row: Row) -> tuple[BlockKey, Entry]:
    """Raises `RecordDamaged` when these are not the bytes of a row."""
    raw, value = row[0], row[1][: -_CHECK.size]
    sound = _CHECK.pack(xxhash.xxh3_64_intdigest(raw + value)) == row[1][-_CHECK.size :]
    if not sound or len(value) < _VALUE.size:
        raise RecordDamaged("a row of the index does not match its checksum")
    place, head_bytes, payload_bytes = _VALUE.unpack_from(value)
    return decode_key(raw), Entry(place, head_bytes, payload_bytes, value[_VALUE.size :])


class Generation:
    """The files of one folder. Reads from any thread; everything else from one at a time.

    Raises `OSError` where the files cannot be had. `problem` says what was wrong with the index
    that was found, "" for nothing.
    """

    def __init__(self, folder: Path, keeper: Keeper, failpoint: Failpoint = no_failpoint) -> None:
        self.number = int(folder.name.removeprefix("gen-"))
        self.folder = folder
        self.problem = ""
        self._keeper = keeper
        self._failpoint = failpoint
        folder.mkdir(mode=0o700, exist_ok=True)
        failpoint("generation_made")
        (folder / "records.new").unlink(missing_ok=True)
        shutil.rmtree(folder / "index.new", ignore_errors=True)
        self._segment = Segment(folder / "records", failpoint)
        self.held: dict[BlockKey, Entry] = {}
        self.is_behind = False  # LMDB lacks something of `held`
        try:
            self.held = dict(map(decode_row, keeper.open(folder)))
            self._check_fit()
        except StoreError as error:
            if self.held or self.end:  # else its making was cut short
                self.problem = error.message
            self._read_segment()
        self._tidy()
        self.bytes = sum(entry.extent[1] + INDEX_BYTES for entry in self.held.values())

    def append(self, blocks: Iterable[Block]) -> dict[BlockKey, Entry]:
        """Writes records behind the others; `held` is up to the caller. Raises `OSError`."""
        self._failpoint("batch_begun")
        whole = [(block, encode_head(block)) for block in blocks]
        places = self._segment.append([(head, block.payload) for block, head in whole])
        self._failpoint("segment_appended")
        return {
            block.key: Entry(place, len(head), len(block.payload), block.owner)
            for (block, head), place in zip(whole, places, strict=True)
        }

    def index(self, entries: dict[BlockKey, Entry]) -> None:
        """Tells LMDB what was added to `held`. Raises `StoreError`; `mend` tries again."""
        if self.is_behind:
            self.mend()
            return
        self.is_behind = True
        self._keeper.put(self.folder, [encode_row(*item) for item in entries.items()])
        self.is_behind = False

    def mend(self) -> None:
        """Makes the LMDB file anew from `held`. Raises `StoreError`."""
        self.is_behind = True
        rows = [encode_row(*item) for item in self.held.items()]
        try:
            self._keeper.rewrite(self.folder, rows)
        except KeeperLost:
            self._keeper.rewrite(self.folder, rows)  # by a new process
        self.is_behind = False

    def read(
        self, wanted: Sequence[Wanted], *, wait: bool = True
    ) -> list[bytes | RecordDamaged] | None:
        """Fills the buffers of records that lie one behind the other; gives the ids of each.

        A `RecordDamaged` where a record is not as it was written. None when that would wait for
        the disk and `wait` is not set.
        """
        # One system call for all of them: each lets other threads run, who are slow to give way.
        aside = memoryview(bytearray(sum(e.extent[1] - e.payload_bytes for _, e, _ in wanted)))
        heads, pieces = [], []
        for _, entry, into in wanted:
            head, pad = entry.head_bytes, entry.extent[1] - entry.head_bytes - entry.payload_bytes
            heads.append(aside[:head])
            pieces += [heads[-1], into, aside[head : head + pad]]
            aside = aside[head + pad :]
        pieces.pop()
        try:
            if not self._segment.read(wanted[0][1].place, pieces, wait=wait):
                return None
        except RecordDamaged as error:
            if len(wanted) == 1:
                return [error]
            return [ids for one in wanted for ids in self.read([one]) or ()]
        found: list[bytes | RecordDamaged] = []
        for (key, _, into), raw in zip(wanted, heads, strict=True):
            try:
                found.append(check(key, raw, into))
            except RecordDamaged as error:
                found.append(error)
        return found

    def _is_sound(self, key: BlockKey, entry: Entry, into: memoryview) -> bool:
        """Reads one record into `into`; whether it is as it was written."""
        return isinstance((self.read([(key, entry, into)]) or [b""])[0], bytes)

    def will_read(self, entries: Sequence[Entry]) -> None:
        """Tells the system to fetch records, one behind the other, from the disk now."""
        place = entries[0].place
        self._segment.will_read(place, sum(entries[-1].extent) - place)

    def erase(self, entries: Sequence[Entry]) -> None:
        """Takes records, which `held` has no more, out of LMDB and overwrites them with zeros.

        Raises `OSError` or `StoreError`.
        """
        # In this order: a crash between leaves records that are taken up again, and deleted again
        # where that was a deletion; never rows of the index that point to nothing.
        self.mend()
        self._failpoint("records_forgotten")
        self._segment.wipe(entry.extent for entry in entries)
        self._failpoint("records_wiped")

    def squeeze(self) -> None:
        """Copies the records to a segment without holes. Raises `OSError` or `StoreError`."""
        fresh = Segment(self.folder / "records.new", self._failpoint)
        moved: dict[BlockKey, Entry] = {}
        for key, entry in sorted(self.held.items(), key=lambda item: item[1].place):
            record = memoryview(bytearray(entry.head_bytes + entry.payload_bytes))
            head, payload = record[: entry.head_bytes], record[entry.head_bytes :]
            if not self._is_sound(key, entry, payload):
                continue
            self._segment.read(entry.place, [head])
            (place,) = fresh.append([(head, payload)])
            moved[key] = Entry(place, entry.head_bytes, entry.payload_bytes, entry.owner)
        fresh.sync()
        self._failpoint("segment_copied")
        # Without an index the segment is read, whichever of the two it is by then.
        self.is_behind = True
        self._keeper.drop(self.folder)
        (self.folder / "data.mdb").unlink(missing_ok=True)
        self._failpoint("index_unlinked")
        fresh.path.rename(self._segment.path)
        fresh.path = self._segment.path
        self._failpoint("segment_swapped")
        self._segment, self.held = fresh, moved
        self.bytes = sum(entry.extent[1] + INDEX_BYTES for entry in moved.values())
        self.mend()

    def drop(self) -> None:
        """Deletes the files; readers that are at work end in peace. Raises `OSError`."""
        with contextlib.suppress(StoreError):  # its process is gone, and has it open no more
            self._keeper.drop(self.folder)
        self._failpoint("generation_dropping")
        shutil.rmtree(self.folder)

    def index_state(self) -> dict[str, int]:
        """Entries, pages in use, pages of the file and readers of the LMDB file."""
        try:
            return self._keeper.state(self.folder)
        except StoreError:
            self.is_behind = True
            return {}

    @property
    def is_sparse(self) -> bool:
        """Whether a quarter of the segment or more holds nothing."""
        live = self.bytes - INDEX_BYTES * len(self.held)
        return 4 * live < 3 * self._segment.end

    @property
    def taken(self) -> int:
        """Bytes on the disk, about: of deleted records none where the system takes them back."""
        return self.bytes if self._segment.gives_back else self.bytes + self._segment.end

    @property
    def end(self) -> int:
        """The length of the segment, holes included."""
        return self._segment.end

    def _check_fit(self) -> None:
        """Raises `RecordDamaged` when the entries cannot be those of this segment."""
        extents = sorted(entry.extent for entry in self.held.values())
        if any(place + size > after for (place, size), (after, _) in pairwise(extents)):
            raise RecordDamaged("records of the index overlap")
        if extents and sum(extents[-1]) > self._segment.end:
            raise RecordDamaged("the segment is shorter than its index says")

    def _tidy(self) -> None:
        """Takes up sound records that the index has not heard of; wipes everything else."""
        extents = [entry.extent for entry in self.held.values()]
        if not self._segment.leftovers(extents):
            return
        places = {place for place, _ in extents}
        for place, head in self._segment.scan():
            if place not in places and head.key not in self.held:
                entry = Entry(place, head.size, head.payload_bytes, head.owner)
                if self._is_sound(head.key, entry, memoryview(bytearray(head.payload_bytes))):
                    self.held[head.key] = entry
                    self.is_behind = True
        extents = [entry.extent for entry in self.held.values()]
        if leftovers := self._segment.leftovers(extents):
            self._segment.wipe(leftovers)

    def _read_segment(self) -> None:
        self.held = {
            head.key: Entry(place, head.size, head.payload_bytes, head.owner)
            for place, head in self._segment.scan()
        }
        try:
            self.mend()
        except StoreError:
            self.is_behind = True
