"""Blocks on disk, so that they outlive the process.

The folder holds generations (`kvstore/generation.py`), each a segment of records with its index:

    LOCK            held while a store is open here; two processes may not share the folder
    KEEPER          held by the process that has the LMDB files open (`kvstore/keeper.py`)
    MANIFEST.json   record format and LMDB engine; another one's files are dropped, not read
    PURGE           deletions that are not done yet; the next start does them
    gen-00000001/   oldest
    gen-00000002/   newest: the one that is written

Eviction drops the oldest generation whole, which gives its bytes back at once. A block that is
still wanted is then a miss once, and stored again by whoever recomputes it.

Nothing here maps a file: payloads are read with preadv into the caller's memory, LMDB is another
process's. Nothing is synced but deletions: a power cut may lose the last seconds.

A read waits for no write: `_writing` is held by whoever changes files, for as long as the disk
takes; `_lock` guards the index. Who needs both takes `_writing` first.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import threading
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import structlog

from kvstore.api import TierStats
from kvstore.claim import claim
from kvstore.errors import StoreError
from kvstore.generation import INDEX_BYTES, Entry, Generation
from kvstore.intents import Intents
from kvstore.keeper import ENGINE, Keeper
from kvstore.record import VERSION
from kvstore.runs import runs
from kvstore.segment import no_failpoint

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from concurrent.futures import Future
    from pathlib import Path

    from kvstore.api import Block, BlockKey, Scope
    from kvstore.generation import Wanted
    from kvstore.runs import Run
    from kvstore.segment import Failpoint

__all__ = ["MANIFEST", "DiskTier"]

log = structlog.get_logger()

MANIFEST = {"record": VERSION, "lmdb": ENGINE, "payload": "segments"}
GENERATIONS = 4
PAUSE_SECONDS = 30.0
"""How long nothing is written after a write has failed: a full disk is not full for a moment."""
HEAD_BYTES = 1024
"""What a record takes beside its payload, at most, for a guess at what a batch will take."""


@dataclass(frozen=True, slots=True)
class _Doomed:
    """A record that nobody will read again and whose bytes are still there."""

    generation: Generation
    entry: Entry


class DiskTier:
    """Implements `kvstore.api.Tier` on a folder, at most about `max_bytes` of files.

    Opening raises `StoreError` when the folder cannot be used at all. Damaged or foreign files in
    it are dropped or read without their index, with one warning each, and counted in
    `stats().damaged`. `failpoint` is called with the name of each point where a crash must be
    survived; `keeper` is for tests.
    """

    name = "disk"
    near = True

    def __init__(
        self,
        path: Path,
        max_bytes: int,
        *,
        failpoint: Failpoint = no_failpoint,
        keeper: Keeper | None = None,
    ) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._share = max(1, max_bytes // GENERATIONS)
        self._failpoint = failpoint
        self._lock = threading.RLock()
        self._writing = threading.Lock()
        self._counts = TierStats(self.name)
        self._generations: list[Generation] = []
        self._where: dict[BlockKey, Generation] = {}
        self._doomed: list[_Doomed] = []
        self._stuck: list[Path] = []  # dropped generations whose files would not go
        self._last = 0  # number of the newest generation that ever was
        self._paused_until = 0.0
        self._second = ThreadPoolExecutor(1, thread_name_prefix="kv-disk")
        self._lock_file = claim(path)
        self._keeper = keeper or Keeper(path)
        try:
            self._check_manifest()
            self._intents = Intents(path / "PURGE", failpoint)
            if self._intents.unreadable:
                # Nobody can say whose bytes were to go: all of them do.
                for folder in self._folders():
                    self._distrust(folder, "an order to delete was damaged")
                self._intents.clear()
            self._open_all()
        except (OSError, StoreError) as error:
            self._keeper.close()
            os.close(self._lock_file)
            text = (isinstance(error, OSError) and error.strerror) or error
            raise StoreError(f"KV folder {path}: {text}") from error

    def leading(self, keys: Sequence[BlockKey]) -> int:
        # Without a lock: looking into the index is atomic, and an answer may be out of date as
        # soon as it is given anyway.
        for index, key in enumerate(keys):
            if key not in self._where:
                return index
        return len(keys)

    def fetch(self, keys: Sequence[BlockKey], into: Sequence[memoryview]) -> list[bytes | None]:
        found: dict[BlockKey, bytes] = {}
        left = deque(runs(self._found(keys, into)))
        cold: list[Run] = []
        # Two cores copy faster than one. Whoever is free takes the next run; a second thread that
        # is busy with another fetch is not waited for.
        second: Future[None] | None = None
        if len(left) > 1:
            with contextlib.suppress(RuntimeError):  # the tier was closed meanwhile
                second = self._second.submit(self._read_warm, left, found, cold)
        self._read_warm(left, found, cold)
        if second and not second.cancel():
            second.result()
        # What is not in memory is asked for all at once, then waited for one by one.
        for generation, wanted in cold:
            generation.will_read([entry for _, entry, _ in wanted])
        for run in cold:
            self._read(*run, found, wait=True)
        self._count(hits=len(found), misses=len(keys) - len(found))
        return [found.get(key) for key in keys]

    def put(self, blocks: Sequence[Block]) -> int:
        with self._writing:
            new = {b.key: b for b in blocks if b.key not in self._where}
            if self._lock_file < 0 or time.monotonic() < self._paused_until:
                self._count(refused=len(new))
            elif new:
                with self._trouble("kv_write_failed", refused=len(new)):
                    self._erase_doomed()
                    self._write(list(new.values()))
            return sum(b.key in self._where for b in blocks)

    def held(self) -> list[BlockKey]:
        with self._lock:
            return list(self._where)

    def discard(self, keys: Sequence[BlockKey]) -> None:
        with self._writing:
            for key in keys:
                self._doom(key)
            # What cannot be overwritten now is when something is written next.
            with self._trouble("kv_discard_failed"):
                self._erase_doomed()

    def purge(self, scope: Scope) -> int:
        with self._writing:
            if self._lock_file < 0:
                return 0
            try:
                self._intents.add(scope)
                deleted = self._purge(scope)
                self._intents.remove(scope)
            except (OSError, StoreError) as error:
                log.error("kv_purge_failed", problem=str(error), path=str(self._path))
                self._count(errors=1)
                raise StoreError(f"not everything could be deleted yet: {error}") from error
            return deleted

    def stats(self) -> TierStats:
        with self._lock:
            size = sum(g.bytes for g in self._generations)
            return replace(self._counts, blocks=len(self._where), bytes=size)

    def index_state(self) -> list[dict[str, int]]:
        """Entries, pages in use, pages of the file and readers of each generation's LMDB."""
        with self._writing:
            return [g.index_state() for g in self._generations]

    def compact(self) -> int:
        """Rewrites generations that are less than three quarters full; says how many."""
        with self._writing:
            done = 0
            with self._trouble("kv_compact_failed"):
                self._erase_doomed()
            for generation in self._generations:
                if generation.is_sparse:
                    with self._trouble("kv_compact_failed"), self._lock:
                        generation.squeeze()
                        done += 1
            self._where = {k: g for g in self._generations for k in g.held}
            return done

    def close(self) -> None:
        with self._writing, self._lock:
            if self._lock_file < 0:
                return
            with self._trouble("kv_close_failed"):
                self._erase_doomed()
                for generation in self._generations:
                    if generation.is_behind:
                        generation.mend()
            self._second.shutdown(wait=False)
            self._keeper.close()
            self._generations.clear()
            self._where.clear()
            self._doomed.clear()
            os.close(self._lock_file)
            self._lock_file = -1

    def _folders(self) -> list[Path]:
        return sorted(self._path.glob("gen-*"))

    def _check_manifest(self) -> None:
        manifest = self._path / "MANIFEST.json"
        try:
            same = json.loads(manifest.read_bytes()) == MANIFEST
        except (OSError, ValueError):
            same = False
        if same:
            return
        for folder in self._folders():
            self._distrust(folder, "written by another version")
        fresh = manifest.with_suffix(".new")
        fresh.write_text(json.dumps(MANIFEST))
        self._failpoint("manifest_written")
        fresh.replace(manifest)

    def _open_all(self) -> None:
        for folder in self._folders():
            try:
                generation = Generation(folder, self._keeper, self._failpoint)
            except (OSError, ValueError) as error:
                self._distrust(folder, str(error))
                continue
            self._last = max(self._last, generation.number)
            if generation.problem:
                log.warning(
                    "kv_index_lost",
                    folder=folder.name,
                    problem=generation.problem,
                    blocks=len(generation.held),
                )
                self._count(damaged=1)
            if not generation.held:
                generation.drop()  # its making or dropping was cut short
                continue
            for key in generation.held:
                self._doom(key)  # an older record of it, which could not be overwritten
            self._generations.append(generation)
            self._where |= dict.fromkeys(generation.held, generation)
        for scope in self._intents.scopes:
            self._purge(scope)
        self._intents.clear()
        while self._is_over():
            self._drop(self._generations[0])

    def _distrust(self, folder: Path, problem: str) -> None:
        log.warning("kv_generation_dropped", folder=folder.name, problem=problem)
        if folder.is_dir():
            shutil.rmtree(folder)
        else:
            folder.unlink()
        self._count(damaged=1)

    def _found(
        self, keys: Sequence[BlockKey], into: Sequence[memoryview]
    ) -> Iterator[tuple[Generation, Wanted]]:
        """What is held of the keys, with the buffer that each is for."""
        for key, buffer in zip(keys, into, strict=True):
            generation = self._where.get(key)
            entry = generation.held.get(key) if generation else None
            if generation and entry and entry.payload_bytes == len(buffer):
                yield generation, (key, entry, buffer)

    def _read_warm(self, left: deque[Run], found: dict[BlockKey, bytes], cold: list[Run]) -> None:
        """Reads runs until none is left; those that are not in memory go to `cold`."""
        while True:
            try:
                run = left.popleft()
            except IndexError:
                return
            if not self._read(*run, found, wait=False):
                cold.append(run)

    def _read(
        self,
        generation: Generation,
        wanted: list[Wanted],
        found: dict[BlockKey, bytes],
        *,
        wait: bool,
    ) -> bool:
        """Adds the ids of what was read to `found`; False when it would wait and may not."""
        read = generation.read(wanted, wait=wait)
        for (key, entry, _), ids in zip(wanted, read or (), strict=read is not None):
            if isinstance(ids, bytes):
                found[key] = ids
            elif self._doom(key, only=entry):
                # Else it was deleted while it was read, and there is nothing to tell.
                log.warning("kv_record_damaged", problem=ids.message)
                self._count(damaged=1)
        return read is not None

    def _doom(self, key: BlockKey, only: Entry | None = None) -> bool:
        """Takes a block out of the index; its bytes are overwritten at the next write."""
        with self._lock:
            generation = self._where.get(key)
            if generation is None or only not in (None, generation.held[key]):
                return False
            del self._where[key]
            entry = generation.held.pop(key)
            generation.bytes -= entry.extent[1] + INDEX_BYTES
            self._doomed.append(_Doomed(generation, entry))
            return True

    def _erase_doomed(self) -> None:
        """Overwrites what is doomed. Raises `OSError` or `StoreError`; the rest stays doomed."""
        while self._doomed:
            generation = self._doomed[0].generation
            with self._lock:
                doomed = [d for d in self._doomed if d.generation is generation]
            generation.erase([d.entry for d in doomed])
            with self._lock:
                self._doomed = [d for d in self._doomed if d not in doomed]
            if not generation.held and generation is not self._generations[-1]:
                self._drop(generation)

    def _purge(self, scope: Scope) -> int:
        """Raises `OSError` or `StoreError`; what is left is doomed, and done by the next try."""
        while self._stuck:
            shutil.rmtree(self._stuck[-1])
            self._stuck.pop()
        gone = [
            key
            for generation in self._generations
            for key, entry in generation.held.items()
            if key.prefix.space == scope.space and scope.owner in (None, entry.owner)
        ]
        for key in gone:
            self._doom(key)
        self._failpoint("purge_found")
        self._erase_doomed()
        self._failpoint("purge_erased")
        return len(gone)

    def _write(self, blocks: Sequence[Block]) -> None:
        size = sum(len(b.payload) + HEAD_BYTES for b in blocks)
        if size > self._max_bytes:
            self._count(refused=len(blocks))
            return
        generation = self._newest(size)
        entries = generation.append(blocks)
        with self._lock:
            generation.held |= entries
            generation.bytes += sum(e.extent[1] + INDEX_BYTES for e in entries.values())
            self._where |= dict.fromkeys(entries, generation)
        self._count(stored=len(entries))
        self._index(generation, entries)
        while self._is_over():
            self._drop(self._generations[0])

    def _index(self, generation: Generation, entries: dict[BlockKey, Entry]) -> None:
        try:
            generation.index(entries)
        except StoreError as error:
            log.warning("kv_index_lost", problem=error.message, folder=generation.folder.name)
            self._count(errors=1)
            with self._trouble("kv_index_stopped"):
                generation.mend()

    def _newest(self, size: int) -> Generation:
        newest = self._generations[-1] if self._generations else None
        if newest is None or (newest.end and newest.end + size > self._share):
            folder = self._path / f"gen-{self._last + 1:08d}"
            newest = Generation(folder, self._keeper, self._failpoint)
            self._last = newest.number
            with self._lock:
                self._generations.append(newest)
        return newest

    def _drop(self, generation: Generation) -> None:
        with self._lock:
            self._generations.remove(generation)
            for key in generation.held:
                del self._where[key]
            self._doomed = [d for d in self._doomed if d.generation is not generation]
        self._count(evicted=len(generation.held))
        try:
            generation.drop()
        except OSError as error:
            log.warning("kv_drop_failed", problem=str(error), path=str(generation.folder))
            self._stuck.append(generation.folder)
            self._count(errors=1)

    def _is_over(self) -> bool:
        # Many that are nearly empty, after many deletions, would hold as many files open.
        many = len(self._generations) > 2 * GENERATIONS
        return many or sum(g.taken for g in self._generations) > self._max_bytes

    @contextlib.contextmanager
    def _trouble(self, event: str, refused: int = 0) -> Iterator[None]:
        """Turns what a disk can do to us into a line, counters and a pause."""
        try:
            yield
        except (OSError, StoreError) as error:
            log.warning(event, problem=str(error), path=str(self._path))
            self._paused_until = time.monotonic() + PAUSE_SECONDS
            self._count(refused=refused, errors=1)

    def _count(self, **more: int) -> None:
        with self._lock:
            was = self._counts
            self._counts = replace(was, **{n: getattr(was, n) + k for n, k in more.items()})
