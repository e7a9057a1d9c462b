"""The disk tier against plain files and against payloads in LMDB, all in one run.

The blocks of a 5,600-token conversation with gemma-3-270m in int8: 88 of the global group, 9 of the
local one. Every number is bytes of payload a second, the median of several rounds.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import lmdb
import numpy as np

from kvstore.api import Block, BlockKey, PrefixKey
from kvstore.disk import DiskTier
from kvstore.record import encode_key

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

__all__ = ["DiskNumbers", "measure"]

GLOBAL, LOCAL = (88, 99_072), (9, 495_360)
QUOTA = 4 << 30


@dataclass(frozen=True, slots=True)
class DiskNumbers:
    """Bytes a second."""

    memcpy: float
    restore_warm: float
    restore_cold: float
    cat_cold: float
    write: float
    write_plain: float
    lmdb_restore_warm: float
    lmdb_write: float

    @property
    def restore_warm_vs_memcpy(self) -> float:
        return self.restore_warm / self.memcpy

    @property
    def restore_cold_vs_cat(self) -> float:
        return self.restore_cold / self.cat_cold

    @property
    def write_vs_plain(self) -> float:
        return self.write / self.write_plain


def conversation(seed: int) -> list[Block]:
    """Blocks of noise with keys of their own."""
    noise = np.random.default_rng(seed)
    made = []
    for group, (count, size) in enumerate((GLOBAL, LOCAL)):
        for index in range(count):
            prefix = PrefixKey(b"s" * 16, noise.bytes(16), 64 * index + 64, index)
            key = BlockKey(prefix, 64 * index, group)
            made.append(Block(key, noise.bytes(256), noise.bytes(size), b"o" * 16))
    return made


def measure(folder: Path, rounds: int = 9) -> DiskNumbers:
    """Takes some seconds and about a gigabyte of `folder`, which it leaves behind."""
    folder.mkdir(parents=True, exist_ok=True)
    chats = [conversation(seed) for seed in range(rounds)]
    size = sum(len(b.payload) for b in chats[0])
    keys = [[b.key for b in chat] for chat in chats]
    room = _buffers(chats[0])

    def rate(work: Callable[[int], None], before: Callable[[int], None] | None = None) -> float:
        seconds = []
        for index in range(rounds):
            if before:
                before(index)
            began = time.perf_counter()
            work(index)
            seconds.append(time.perf_counter() - began)
        return size / statistics.median(seconds)

    # Memory that a virtual machine's host has given already; otherwise whoever comes first pays.
    np.ones(6 * rounds * size, np.uint8)
    memcpy = rate(lambda i: _copy([b.payload for b in chats[i]], room))
    plain = [folder / f"plain-{i}" for i in range(rounds)]
    write_plain = rate(lambda i: _write(plain[i], chats[i]))
    tier = DiskTier(folder / "kv", QUOTA)
    write = rate(lambda i: _stored(tier.put(chats[i]), chats[i]))
    os.sync()
    segments = sorted((folder / "kv").glob("gen-*/records"))
    warm = rate(lambda i: _right(tier.fetch(keys[i], room)))
    cat_cold = rate(lambda i: _cat(plain[i]), lambda i: _forget(plain))
    cold = rate(lambda i: _right(tier.fetch(keys[i], room)), lambda i: _forget(segments))
    tier.close()
    env = lmdb.open(str(folder / "lmdb"), map_size=QUOTA, sync=False, writemap=False, lib_version=0)
    lmdb_write = rate(lambda i: _put(env, chats[i]))
    lmdb_warm = rate(lambda i: _get(env, keys[i], room))
    env.close()
    return DiskNumbers(memcpy, warm, cold, cat_cold, write, write_plain, lmdb_warm, lmdb_write)


def _buffers(blocks: Sequence[Block]) -> list[memoryview]:
    """One arena, as the device pool has: each buffer 64 bytes aligned."""
    arena = np.zeros(sum(len(b.payload) for b in blocks) + 64, np.uint8)
    at = -arena.ctypes.data % 64
    made = []
    for block in blocks:
        made.append(arena.data[at : at + len(block.payload)])
        at += len(block.payload)
    return made


def _copy(sources: Sequence[bytes | memoryview], into: Sequence[memoryview]) -> None:
    for source, buffer in zip(sources, into, strict=True):
        buffer[:] = source


def _write(path: Path, blocks: Sequence[Block]) -> None:
    with path.open("wb", buffering=0) as file:
        for block in blocks:
            file.write(block.payload)


def _stored(count: int, blocks: Sequence[Block]) -> None:
    assert count == len(blocks)


def _right(ids: Sequence[bytes | None]) -> None:
    assert None not in ids


def _forget(paths: Sequence[Path]) -> None:
    """Drops files from the page cache."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        os.fdatasync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def _cat(path: Path) -> None:
    subprocess.run(["cat", str(path)], stdout=subprocess.DEVNULL, check=True)


def _put(env: lmdb.Environment, blocks: Sequence[Block]) -> None:
    with env.begin(write=True) as txn:
        for block in blocks:
            txn.put(encode_key(block.key), block.payload)


def _get(env: lmdb.Environment, keys: Sequence[BlockKey], into: Sequence[memoryview]) -> None:
    with env.begin(buffers=True) as txn:
        for key, buffer in zip(keys, into, strict=True):
            value = txn.get(encode_key(key))
            assert value is not None
            buffer[:] = value
