"""How fast a conversation's KV comes back from each tier, beside plain copies of the same bytes."""

from __future__ import annotations

import os
import random
import subprocess
import time
from typing import TYPE_CHECKING

import numpy as np

from backends.local.paged import SequenceKV
from kvstore.api import Block, BlockKey, Space
from kvstore.device import DeviceTier
from kvstore.disk import DiskTier
from kvstore.host import HostTier
from kvstore.keys import TokenChain
from kvstore.tiered import TieredStore

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    from kvstore.api import Layout

__all__ = ["restore_ratios"]


class _Rig:
    """One conversation of random KV over device, memory and disk."""

    def __init__(self, layout: Layout, folder: Path, tokens: int) -> None:
        chance = random.Random(0)
        self.tokens = [chance.randrange(200_000) for _ in range(tokens)]
        slots = {g.id: 2 * (tokens // layout.block_tokens + 2) for g in layout.groups}
        self.device = DeviceTier(layout, slots)
        self.host = HostTier(1 << 30)
        self.disk = DiskTier(folder, 1 << 30)
        self.store = TieredStore(layout, self.device, self.host, (self.disk,))
        space = Space("m", "w", "t", "l", "int8", b"bench")
        self.chain = chain = TokenChain(space, layout, self.tokens, owner=b"o" * 16)
        self.lookups: list[float] = []
        blocks = [
            Block(
                key := BlockKey(chain.key(end), start, group.id),
                chain.ids(start, end),
                chance.randbytes((end - start) * group.bytes_per_token),
                chain.owner(key),
            )
            for group in layout.groups
            for start in range(layout.first_needed(group, tokens), tokens, layout.block_tokens)
            for end in [min(start + layout.block_tokens, tokens)]
        ]
        self.bytes = sum(len(block.payload) for block in blocks)
        self.store.offer(blocks)
        while self.store.stats().queued_bytes:
            time.sleep(0.01)

    def restore(self) -> float:
        """Seconds from the order to load to pages that attention can read and others can find."""
        began = time.perf_counter()
        match = self.store.match(self.chain)
        found = time.perf_counter()
        self.lookups.append(found - began)
        room = self.device.room()
        self.store.load(match, self.chain, room)
        while not (ended := self.store.poll()):
            time.sleep(5e-5)
        match = ended[0].match
        assert match.length == len(self.tokens)
        room.settle(match.blocks)
        kv = SequenceKV(self.device)
        kv.adopt(match.blocks, room.slots, match.length)
        kv.publish(match.blocks, self.chain)
        seconds = time.perf_counter() - found
        kv.free()
        self.device.discard(self.device.held())
        return seconds


def restore_ratios(layout: Layout, folder: Path, tokens: int, rounds: int) -> dict[str, object]:
    """Bandwidths of restores as parts of a plain copy's, in one run.

    Each is the best of `rounds`, taken in turns with what it is compared with: on a shared machine
    the best is what the code can do, and the rest is what others did meanwhile.
    """
    rig = _Rig(layout, folder, tokens)
    try:
        source = np.frombuffer(random.Random(1).randbytes(rig.bytes), np.uint8)
        target = np.zeros_like(source)
        for _ in range(2):  # every page of the pool has been written once
            rig.restore()
        memcpy, host = _interleaved(lambda: _copied(target, source), rig.restore, rounds)
        rig.host.discard(rig.host.held())
        disk_copy, disk = _interleaved(lambda: _copied(target, source), rig.restore, rounds)
        file = next(folder.glob("gen-*/records"))
        cat, cold = [], []
        for _ in range(rounds):
            _uncache(folder)
            began = time.perf_counter()
            subprocess.run(["cat", str(file)], stdout=subprocess.DEVNULL, check=True)
            cat.append(time.perf_counter() - began)
            _uncache(folder)
            cold.append(rig.restore())
        write = _write_ratio(rig, folder)
    finally:
        rig.store.close()
    gbps = rig.bytes / 1e9
    return {
        "restore_host_vs_memcpy": round(memcpy / host, 3),
        "restore_lmdb_vs_memcpy": round(disk_copy / disk, 3),
        "restore_cold_vs_cat": round(min(cat) / min(cold), 3),
        "write_vs_plain_file": write,
        "lookup_ms": round(min(rig.lookups) * 1e3, 2),
        "restore_host_ms": round(host * 1e3, 2),
        "restore_disk_ms": round(disk * 1e3, 2),
        "restore_cold_ms": round(min(cold) * 1e3, 2),
        "memcpy_gb_per_s": round(gbps / memcpy, 2),
        "bytes": rig.bytes,
    }


def _copied(target: NDArray[np.uint8], source: NDArray[np.uint8]) -> float:
    began = time.perf_counter()
    np.copyto(target, source)
    return time.perf_counter() - began


def _interleaved(
    one: Callable[[], float], other: Callable[[], float], rounds: int
) -> tuple[float, float]:
    """The best of both, taken in turns."""
    pairs = [(one(), other()) for _ in range(rounds)]
    return min(p[0] for p in pairs), min(p[1] for p in pairs)


def _uncache(folder: Path) -> None:
    """Takes the files of a folder out of the page cache."""
    for path in folder.rglob("*"):
        if path.is_file():
            fd = os.open(path, os.O_RDONLY)
            os.fsync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(fd)


def _write_ratio(rig: _Rig, folder: Path) -> float:
    """The disk tier's write bandwidth as a part of a plain file's, same bytes, both synced."""
    blocks = [block for key in rig.disk.held() if (block := _reread(rig, key))]
    ratios = []
    for number in range(5):
        plain = folder / "plain"
        began = time.perf_counter()
        with open(plain, "wb", buffering=0) as out:
            for block in blocks:
                out.write(block.payload)
            os.fsync(out.fileno())
        alone = time.perf_counter() - began
        plain.unlink()
        with _fresh(folder / f"write-{number}") as tier:
            assert tier.put(blocks[:1]) == 1  # starts its index process
            began = time.perf_counter()
            assert tier.put(blocks) == len(blocks)
            for records in (folder / f"write-{number}").glob("gen-*/records"):
                fd = os.open(records, os.O_RDONLY)
                os.fsync(fd)
                os.close(fd)
            ratios.append(alone / (time.perf_counter() - began))
    return round(max(ratios), 3)


class _fresh:
    """A disk tier for the length of a block."""

    def __init__(self, path: Path) -> None:
        self.tier = DiskTier(path, 1 << 30)

    def __enter__(self) -> DiskTier:
        return self.tier

    def __exit__(self, *error: object) -> None:
        self.tier.close()


def _reread(rig: _Rig, key: BlockKey) -> Block | None:
    size = key.tokens * rig.device.bytes_per_token(key.group)
    payload = memoryview(bytearray(size))
    (ids,) = rig.disk.fetch([key], [payload])
    return None if ids is None else Block(key, ids, payload)
