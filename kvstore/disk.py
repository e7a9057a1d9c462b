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
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import threading
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import lmdb
import structlog
from lmdb import verify

from kvstore.api import TierStats
from kvstore.errors import RecordDamaged, StoreError
from kvstore.record import VERSION, decode, decode_key, encode, encode_key

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from kvstore.api import Block, BlockKey

__all__ = ["DiskTier"]

log = structlog.get_logger()

ENGINE = 0  # LMDB 0.9; files of 1.x cannot be read by 0.9 and the other way round
MANIFEST = {"record": VERSION, "lmdb": ENGINE}
GENERATIONS = 4
SPARE = 64 << 20
"""Address space of an environment beyond its share: LMDB's own pages and a last large batch."""


@dataclass(slots=True)
class _Generation:
    number: int
    path: Path
    env: lmdb.Environment
    held: dict[BlockKey, int]
    bytes: int


class DiskTier:
    """Implements `kvstore.api.Tier` on a folder, at most about `max_bytes` of payload.

    Opening raises `StoreError` when the folder cannot be used at all. Damaged or foreign files in
    it are dropped with one warning each and counted in `stats().damaged`.
    """

    name = "disk"

    def __init__(self, path: Path, max_bytes: int) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._share = max(1, max_bytes // GENERATIONS)
        self._lock = threading.RLock()
        self._counts = TierStats(self.name)
        self._generations: list[_Generation] = []
        self._where: dict[BlockKey, _Generation] = {}
        self._full = False
        self._lock_file = self._claim()
        try:
            self._check_manifest()
            self._open_all()
        except OSError as error:
            os.close(self._lock_file)
            raise StoreError(f"KV folder {path}: {error.strerror or error}") from error

    def leading(self, keys: Sequence[BlockKey]) -> int:
        # Without the lock, which a write holds while it waits for the disk: looking into the
        # index is atomic, and an answer may be out of date as soon as it is given anyway.
        for index, key in enumerate(keys):
            if key not in self._where:
                return index
        return len(keys)

    def get(self, keys: Sequence[BlockKey]) -> list[Block | None]:
        with self._lock:
            found = [self._read(key) for key in keys]
            hits = sum(block is not None for block in found)
            self._count(hits=hits, misses=len(keys) - hits)
            return found

    def put(self, blocks: Sequence[Block]) -> int:
        with self._lock:
            new = [b for b in blocks if b.key not in self._where]
            try:
                self._write(new)
            except (lmdb.Error, OSError) as error:
                if not self._full:
                    log.warning("kv_write_failed", problem=str(error), path=str(self._path))
                self._full = True
                self._count(refused=len(new), errors=1)
            else:
                self._full = False
            return sum(b.key in self._where for b in blocks)

    def held(self) -> list[BlockKey]:
        with self._lock:
            return list(self._where)

    def discard(self, keys: Sequence[BlockKey]) -> None:
        with self._lock:
            for key in keys:
                generation = self._where.pop(key, None)
                if generation is None:
                    continue
                generation.bytes -= generation.held.pop(key)
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
        with self._lock:
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
            try:
                problems = verify.verify(str(folder))
                if problems:
                    raise RecordDamaged(str(problems[0]))
                generation = self._open(folder)
                self._index(generation)
            except (lmdb.Error, OSError, ValueError, verify.VerifyError, StoreError) as error:
                self._distrust(folder, str(error))
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
                    generation.held[key] = len(value)
        except BaseException:
            generation.env.close()
            raise
        generation.bytes = sum(generation.held.values())
        self._where |= dict.fromkeys(generation.held, generation)

    def _distrust(self, folder: Path, problem: str) -> None:
        log.warning("kv_generation_dropped", folder=folder.name, problem=problem)
        shutil.rmtree(folder)
        self._count(damaged=1)

    def _read(self, key: BlockKey) -> Block | None:
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
            self.discard([key])
            return None
        return block

    def _write(self, blocks: Sequence[Block]) -> None:
        records = {block.key: encode(block) for block in blocks}
        size = sum(map(len, records.values()))
        if not records:
            return
        if self._lock_file < 0 or size > self._max_bytes:
            self._count(refused=len(records))
            return
        generation = self._newest(size)
        with generation.env.begin(write=True) as txn:
            for key, record in records.items():
                txn.put(encode_key(key), record)
        for key, record in records.items():
            generation.held[key] = len(record)
            self._where[key] = generation
        generation.bytes += size
        self._count(stored=len(records))
        while self._used() > self._max_bytes:
            self._drop_oldest()

    def _newest(self, size: int) -> _Generation:
        newest = self._generations[-1] if self._generations else None
        if newest is None or (newest.bytes and newest.bytes + size > self._share):
            number = newest.number + 1 if newest else 1
            newest = self._open(self._path / f"gen-{number:08d}")
            self._generations.append(newest)
        return newest

    def _drop_oldest(self) -> None:
        oldest = self._generations.pop(0)
        for key in oldest.held:
            if self._where.get(key) is oldest:
                del self._where[key]
        oldest.env.close()
        shutil.rmtree(oldest.path)
        self._count(evicted=len(oldest.held))

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
