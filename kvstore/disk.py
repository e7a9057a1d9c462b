"""Blocks in LMDB, so that they outlive the process.

The folder holds generations, each an LMDB environment of its own:

    LOCK            held while a store is open here; two processes may not share the folder
    MANIFEST.json   record format and LMDB engine; another one's files are dropped, not read
    gen-00000001/   oldest
    gen-00000002/   newest: the one that is written

Eviction drops the oldest generation whole: LMDB never shrinks a file and fragments large values,
and a dropped file gives its bytes back at once. A block that is still wanted is then a miss once,
and stored again by whoever recomputes it.

`sync=False`: a power cut may lose the last seconds, and the verifier of LMDB (which reads the file
without trusting it) decides at the next start whether a generation may be opened at all. Never
`writemap`: a full disk would kill the process.

A read waits for no write: `_writing` is held by whoever changes files, for as long as the disk
takes; `_lock` guards the index and keeps an environment open while one record is copied out of it.
Who needs both takes `_writing` first.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import threading
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import lmdb
import structlog
from lmdb import verify

from kvstore.api import TierStats
from kvstore.errors import RecordDamaged, StoreError
from kvstore.record import VERSION, decode, decode_key, encode_head, encode_key

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from kvstore.api import Block, BlockKey

__all__ = ["DiskTier"]

log = structlog.get_logger()

ENGINE = 0  # LMDB 0.9; files of 1.x cannot be read by 0.9 and the other way round
MANIFEST = {"record": VERSION, "lmdb": ENGINE}
GENERATIONS = 4
PAGE = 4096
SPARE = 64 << 20
"""Address space of an environment beyond its share: LMDB's own pages and a last large batch."""
PAUSE_SECONDS = 30.0
"""How long nothing is written after a write has failed: a full disk is not full for a moment."""


@dataclass(slots=True)
class _Generation:
    number: int
    path: Path
    env: lmdb.Environment
    held: dict[BlockKey, int]
    bytes: int
    sealed: bool = False


def _on_disk(size: int) -> int:
    """What a record of `size` bytes takes in the file: whole pages with a header of 16 bytes."""
    return -(-(size + 16) // PAGE) * PAGE


def _is_stillborn(folder: Path) -> bool:
    """Whether a generation lacks LMDB's first two pages: its making or dropping was cut short."""
    try:
        return (folder / "data.mdb").stat().st_size < 2 * PAGE
    except FileNotFoundError:
        return folder.is_dir()
    except OSError:
        return False


class DiskTier:
    """Implements `kvstore.api.Tier` on a folder, at most about `max_bytes` of files.

    Opening raises `StoreError` when the folder cannot be used at all. Damaged or foreign files in
    it are dropped with one warning each and counted in `stats().damaged`.
    """

    name = "disk"

    def __init__(self, path: Path, max_bytes: int) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._share = max(1, max_bytes // GENERATIONS)
        self._lock = threading.RLock()
        self._writing = threading.Lock()
        self._counts = TierStats(self.name)
        self._generations: list[_Generation] = []
        self._where: dict[BlockKey, _Generation] = {}
        self._paused_until = 0.0
        self._scratch = bytearray()
        self._lock_file = self._claim()
        try:
            self._check_manifest()
            self._open_all()
        except OSError as error:
            os.close(self._lock_file)
            raise StoreError(f"KV folder {path}: {error.strerror or error}") from error

    def leading(self, keys: Sequence[BlockKey]) -> int:
        # Without a lock: looking into the index is atomic, and an answer may be out of date as
        # soon as it is given anyway.
        for index, key in enumerate(keys):
            if key not in self._where:
                return index
        return len(keys)

    def get(self, keys: Sequence[BlockKey]) -> list[Block | None]:
        found = [self._read(key) for key in keys]
        hits = sum(block is not None for block in found)
        self._count(hits=hits, misses=len(keys) - hits)
        return found

    def put(self, blocks: Sequence[Block]) -> int:
        with self._writing:
            new = [b for b in blocks if b.key not in self._where]
            if self._lock_file < 0 or time.monotonic() < self._paused_until:
                self._count(refused=len(new))
            elif new:
                try:
                    self._write(new)
                except (lmdb.Error, OSError) as error:
                    log.warning("kv_write_failed", problem=str(error), path=str(self._path))
                    self._paused_until = time.monotonic() + PAUSE_SECONDS
                    self._count(refused=len(new), errors=1)
            return sum(b.key in self._where for b in blocks)

    def held(self) -> list[BlockKey]:
        with self._lock:
            return list(self._where)

    def discard(self, keys: Sequence[BlockKey]) -> None:
        with self._writing:
            for key in keys:
                generation = self._forget(key)
                if generation is None:
                    continue
                try:
                    with generation.env.begin(write=True) as txn:
                        txn.delete(encode_key(key))
                except (lmdb.Error, OSError) as error:
                    # The index has forgotten it; the bytes go with their generation.
                    log.warning("kv_discard_failed", problem=str(error))
                    self._count(errors=1)

    def stats(self) -> TierStats:
        with self._lock:
            size = sum(g.bytes for g in self._generations)
            return replace(self._counts, blocks=len(self._where), bytes=size)

    def close(self) -> None:
        with self._writing, self._lock:
            if self._lock_file < 0:
                return
            for generation in self._generations:
                generation.env.close()
            self._generations.clear()
            self._where.clear()
            os.close(self._lock_file)
            self._lock_file = -1

    def _claim(self) -> int:
        try:
            self._path.mkdir(mode=0o700, parents=True, exist_ok=True)
            claimed = os.open(self._path / "LOCK", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StoreError(f"KV folder {self._path}: {error.strerror or error}") from error
        try:
            fcntl.flock(claimed, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(claimed)
            raise StoreError(f"KV folder {self._path} is in use by another process") from None
        return claimed

    def _check_manifest(self) -> None:
        manifest = self._path / "MANIFEST.json"
        try:
            same = json.loads(manifest.read_bytes()) == MANIFEST
        except (OSError, ValueError):
            same = False
        if same:
            return
        for folder in sorted(self._path.glob("gen-*")):
            self._distrust(folder, "written by another version")
        fresh = manifest.with_suffix(".new")
        fresh.write_text(json.dumps(MANIFEST))
        fresh.replace(manifest)

    def _open_all(self) -> None:
        for folder in sorted(self._path.glob("gen-*")):
            if _is_stillborn(folder):
                shutil.rmtree(folder)
                continue
            try:
                problems = verify.verify(str(folder))
                if problems:
                    raise RecordDamaged(str(problems[0]))
                generation = self._open(folder)
                self._index(generation)
            except Exception as error:
                # Whatever a foreign file makes the verifier or the library trip over.
                self._distrust(folder, str(error) or type(error).__name__)
                continue
            self._generations.append(generation)
        while self._used() > self._max_bytes:
            self._drop_oldest()

    def _open(self, folder: Path) -> _Generation:
        number = int(folder.name.removeprefix("gen-"))
        folder.mkdir(mode=0o700, exist_ok=True)
        env = lmdb.open(
            str(folder),
            map_size=2 * self._share + SPARE,
            sync=False,
            writemap=False,
            meminit=False,
            readahead=True,
            max_readers=16,
            lib_version=ENGINE,
        )
        env.reader_check()
        return _Generation(number, folder, env, {}, 0)

    def _index(self, generation: _Generation) -> None:
        try:
            with generation.env.begin(buffers=True) as txn, txn.cursor() as cursor:
                for raw, value in cursor:
                    key = decode_key(bytes(raw))
                    generation.held[key] = _on_disk(len(value))
        except BaseException:
            generation.env.close()
            raise
        generation.bytes = sum(generation.held.values())
        self._where |= dict.fromkeys(generation.held, generation)

    def _distrust(self, folder: Path, problem: str) -> None:
        log.warning("kv_generation_dropped", folder=folder.name, problem=problem)
        if folder.is_dir():
            shutil.rmtree(folder)
        else:
            folder.unlink()
        self._count(damaged=1)

    def _read(self, key: BlockKey) -> Block | None:
        with self._lock:
            generation = self._where.get(key)
            if generation is None:
                return None
            try:
                with generation.env.begin(buffers=True) as txn:
                    record = txn.get(encode_key(key))
                    if record is None:
                        raise RecordDamaged("gone")
                    block = decode(record)
                    del record  # it points into the map and dies with the transaction
                if block.key != key:
                    raise RecordDamaged("another block's record")
            except (lmdb.Error, OSError, RecordDamaged) as error:
                log.warning("kv_record_damaged", problem=str(error))
                self._count(damaged=1)
                # The record stays until its generation goes; the next start finds it again.
                self._forget(key)
                return None
            return block

    def _forget(self, key: BlockKey) -> _Generation | None:
        """Takes a block out of the index; the generation that still has its bytes."""
        with self._lock:
            generation = self._where.pop(key, None)
            if generation is not None:
                generation.bytes -= generation.held.pop(key)
            return generation

    def _write(self, blocks: Sequence[Block]) -> None:
        heads = {block.key: (encode_head(block), block) for block in blocks}
        sizes = {
            key: _on_disk(len(head) + len(block.payload)) for key, (head, block) in heads.items()
        }
        size = sum(sizes.values())
        if size > self._max_bytes:
            self._count(refused=len(sizes))
            return
        generation = self._newest(size)
        try:
            with generation.env.begin(write=True) as txn:
                for key, (head, block) in heads.items():
                    txn.put(encode_key(key), self._joined(head, block.payload))
        except lmdb.Error:
            generation.sealed = True  # it may be full, or past writing for good
            raise
        with self._lock:
            generation.held |= sizes
            self._where |= dict.fromkeys(sizes, generation)
            generation.bytes += size
        self._count(stored=len(sizes))
        while self._used() > self._max_bytes:
            self._drop_oldest()

    def _joined(self, head: bytes, payload: bytes | memoryview) -> memoryview:
        # LMDB copies it at once. Memory that is used again takes no page faults: several times
        # the speed of new bytes for every record.
        end = len(head) + len(payload)
        if len(self._scratch) < end:
            self._scratch = bytearray(end)
        record = memoryview(self._scratch)[:end]
        record[: len(head)] = head
        record[len(head) :] = payload
        return record

    def _newest(self, size: int) -> _Generation:
        newest = self._generations[-1] if self._generations else None
        if newest is not None and not newest.bytes:
            return newest
        if newest is None or newest.sealed or newest.bytes + size > self._share:
            number = newest.number + 1 if newest else 1
            newest = self._open(self._path / f"gen-{number:08d}")
            with self._lock:
                self._generations.append(newest)
        return newest

    def _drop_oldest(self) -> None:
        with self._lock:
            oldest = self._generations.pop(0)
            for key in oldest.held:
                if self._where.get(key) is oldest:
                    del self._where[key]
            oldest.env.close()
        self._count(evicted=len(oldest.held))
        try:
            shutil.rmtree(oldest.path)
        except OSError as error:
            log.warning("kv_drop_failed", problem=str(error), path=str(oldest.path))
            self._count(errors=1)

    def _used(self) -> int:
        return sum(g.bytes for g in self._generations)

    def _count(
        self,
        *,
        hits: int = 0,
        misses: int = 0,
        stored: int = 0,
        evicted: int = 0,
        damaged: int = 0,
        refused: int = 0,
        errors: int = 0,
    ) -> None:
        with self._lock:
            c = self._counts
            self._counts = replace(
                c,
                hits=c.hits + hits,
                misses=c.misses + misses,
                stored=c.stored + stored,
                evicted=c.evicted + evicted,
                damaged=c.damaged + damaged,
                refused=c.refused + refused,
                errors=c.errors + errors,
            )
