"""A store at its quota that is written and read on and on: nothing grows."""

from __future__ import annotations

import os
import random
import time
from typing import TYPE_CHECKING

import pytest

from kvstore.api import Block, BlockKey, PrefixKey, Scope
from kvstore.disk import GENERATIONS, DiskTier
from kvstore.testing import got

if TYPE_CHECKING:
    from pathlib import Path

QUOTA = 32 << 20
PAYLOAD = 99_072
SPACE = b"s" * 16


def noise_blocks(chance: random.Random, count: int) -> list[Block]:
    """New blocks of one owner, as big as those of a real model."""
    owner = chance.randbytes(16)
    prefixes = [
        PrefixKey(SPACE, chance.randbytes(16), 64 * n + 64, chance.getrandbits(60))
        for n in range(count)
    ]
    payload = chance.randbytes(PAYLOAD)
    return [Block(BlockKey(p, p.length - 64, 0), bytes(256), payload, owner) for p in prefixes]


def rss(pid: int | None) -> int:
    """Resident bytes of a process."""
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def footprint(tier: DiskTier, folder: Path) -> dict[str, int]:
    """What might grow."""
    files = [f for f in folder.rglob("*") if f.is_file()]
    state = tier.index_state()
    return {
        "files": len(files),
        "file_bytes": sum(f.stat().st_blocks * 512 for f in files),
        "index_pages": sum(s["file_pages"] for s in state),
        "readers": sum(s["readers"] for s in state),
        "fds": len(os.listdir("/proc/self/fd")),
        "keeper_fds": len(os.listdir(f"/proc/{tier._keeper.pid}/fd")),
        "rss": rss(os.getpid()),
        "keeper_rss": rss(tier._keeper.pid),
    }


def churn(folder: Path, seconds: float, slack: int) -> None:
    """Writes, reads, deletes and discards at the quota; compares what it took on the way.

    `slack`: bytes that a process's memory may grow by and still be level. The allocator takes
    2 MB at a time for LMDB's lists and reaches its level after some ten seconds.
    """
    chance = random.Random(7)
    tier = DiskTier(folder, QUOTA)
    taken: list[dict[str, int]] = []
    began = time.monotonic()
    warm = False
    while time.monotonic() < began + seconds or len(taken) < 20:
        mine = noise_blocks(chance, 24)
        assert tier.put(mine) == len(mine)
        assert got(tier, mine) == mine
        luck = chance.random()
        if luck < 0.1:
            assert tier.purge(Scope(SPACE, mine[0].owner)) == len(mine)
        elif luck < 0.2:
            tier.discard([b.key for b in mine[::3]])
        warm = warm or tier.stats().evicted > 500
        if warm:
            taken.append(footprint(tier, folder))
    stats = tier.stats()
    assert (stats.damaged, stats.errors, stats.refused) == (0, 0, 0)
    tier.close()
    half = len(taken) // 2
    for name in taken[0]:
        before, after = (max(t[name] for t in run) for run in (taken[:half], taken[half:]))
        assert after <= 1.15 * before + (slack if "rss" in name else 4), (name, before, after)
    assert max(t["file_bytes"] for t in taken) < 1.1 * QUOTA
    assert max(t["files"] for t in taken) <= 4 + 2 * (2 * GENERATIONS + 1)
    assert max(t["readers"] for t in taken) == 0


def test_ten_seconds_at_quota(tmp_path: Path) -> None:
    """File size, pages of the index, readers, file descriptors and memory stay as they are."""
    churn(tmp_path, 6, 16 << 20)


@pytest.mark.slow
def test_ten_minutes_at_quota(tmp_path: Path) -> None:
    """The same for ten minutes."""
    churn(tmp_path, 600, 4 << 20)
