"""Whatever happens to the files of a store, running or not: a right block or a miss, and life."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from kvstore.disk import DiskTier
from kvstore.record import encode
from kvstore.testing import blocks, chain, got

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from kvstore.api import Block

ROOM = 1 << 20
FILES = ["records", "data.mdb"]


def flip(file: Path, seed: int) -> None:
    raw = bytearray(file.read_bytes())
    chance = random.Random(seed)
    for _ in range(1 + 5 * seed):
        raw[chance.randrange(len(raw))] ^= 1 << chance.randrange(8)
    write_in_place(file, bytes(raw))


def every_kth(file: Path, seed: int) -> None:
    raw = bytearray(file.read_bytes())
    for at in range(seed, len(raw), 97):
        raw[at] ^= 0xFF
    write_in_place(file, bytes(raw))


def truncate(file: Path, seed: int) -> None:
    os.truncate(file, int(file.stat().st_size * (0.0, 0.1, 0.5, 0.9, 0.999)[seed % 5]))


def garbage(file: Path, seed: int) -> None:
    write_in_place(file, random.Random(seed).randbytes(file.stat().st_size))


def delete(file: Path, seed: int) -> None:
    file.unlink()


def swap_halves(file: Path, seed: int) -> None:
    raw = file.read_bytes()
    at = len(raw) // (seed + 2) // 64 * 64
    write_in_place(file, raw[at:] + raw[:at])


def write_in_place(file: Path, raw: bytes) -> None:
    """Into the same inode, as a failing disk would."""
    with open(file, "r+b") as out:
        out.write(raw)


HARM = [flip, every_kth, truncate, garbage, delete, swap_halves]


def chats(count: int, first: int = 0) -> list[Block]:
    return [
        b for n in range(first, first + count) for b in blocks(chain(range(n * 100, n * 100 + 40)))
    ]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("harm", HARM)
def test_harmed_at_rest(tmp_path: Path, name: str, harm: Callable[[Path, int], None]) -> None:
    """A store opened on harmed files serves right blocks or none, and takes new ones."""
    for seed in range(3):
        folder = tmp_path / str(seed)
        tier = DiskTier(folder, ROOM)
        mine = chats(4)
        tier.put(mine)
        tier.close()
        harm(folder / "gen-00000001" / name, seed)
        tier = DiskTier(folder, ROOM)
        found = got(tier, mine)
        assert all(g is None or g == b for g, b in zip(found, mine, strict=True))
        more = chats(2, 50)
        tier.put(more)
        found = got(tier, more)
        assert all(g is None or g == b for g, b in zip(found, more, strict=True))
        tier.close()


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("harm", HARM)
def test_harmed_while_running(tmp_path: Path, name: str, harm: Callable[[Path, int], None]) -> None:
    """Harm under a running store costs blocks at worst: reads are right, writes go on."""
    for seed in range(3):
        folder = tmp_path / str(seed)
        tier = DiskTier(folder, ROOM)
        mine = chats(4)
        tier.put(mine)
        harm(folder / "gen-00000001" / name, seed)
        for first in (50, 60, 70):
            more = chats(2, first)
            tier.put(more)
            tier._paused_until = 0.0  # the pause after an error is not what is asked here
            found = got(tier, mine + more)
            expected = mine + more
            assert all(g is None or g == b for g, b in zip(found, expected, strict=True))
        last = chats(1, 90)
        assert tier.put(last) == len(last)
        assert got(tier, last) == last
        tier.close()
        again = DiskTier(folder, ROOM)
        found = got(again, mine + last)
        assert all(g is None or g == b for g, b in zip(found, mine + last, strict=True))
        again.close()


def test_a_dead_keeper_is_replaced(tmp_path: Path) -> None:
    """The index process killed under a running store costs a counter and no block."""
    tier = DiskTier(tmp_path, ROOM)
    mine = chats(2)
    tier.put(mine)
    pid = tier._keeper.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    assert got(tier, mine) == mine  # reads do not need it
    more = chats(1, 50)
    assert tier.put(more) == len(more)
    assert tier.stats().errors == 1
    assert tier._keeper.pid not in (None, pid)
    tier.close()
    again = DiskTier(tmp_path, ROOM)
    assert got(again, mine + more) == mine + more
    assert again.stats().damaged == 0
    again.close()


def test_swapped_records(tmp_path: Path) -> None:
    """Two whole records in each other's places are two counted misses, and room for new ones."""
    tier = DiskTier(tmp_path, ROOM)
    mine = chats(1)
    tier.put(mine)
    file = tmp_path / "gen-00000001" / "records"
    raw = file.read_bytes()
    size = len(encode(mine[0]))
    size += -size % 64
    assert len(encode(mine[1])) == len(encode(mine[0]))
    write_in_place(file, raw[size : 2 * size] + raw[:size] + raw[2 * size :])
    assert got(tier, mine) == [None, None, *mine[2:]]
    assert tier.stats().damaged == 2
    assert tier.put(mine) == len(mine)
    assert got(tier, mine) == mine
    tier.close()


def test_lost_index_is_read_from_the_records(tmp_path: Path) -> None:
    """Whatever becomes of LMDB's file, the records say what they are: no block is lost."""
    for seed, harm in enumerate([flip, every_kth, truncate, garbage, delete, swap_halves]):
        folder = tmp_path / str(seed)
        tier = DiskTier(folder, ROOM)
        mine = chats(4)
        tier.put(mine)
        tier.close()
        harm(folder / "gen-00000001" / "data.mdb", 3)
        tier = DiskTier(folder, ROOM)
        assert got(tier, mine) == mine
        assert tier.stats().damaged <= 1
        tier.close()
        tier = DiskTier(folder, ROOM)  # and the index is whole again
        assert tier.stats().damaged == 0
        tier.close()


SURVIVOR = """
import random, sys
from pathlib import Path
from kvstore.disk import DiskTier
from kvstore.record import encode
from kvstore.testing import blocks, chain, got
folder = Path(sys.argv[1])
chance = random.Random(int(sys.argv[2]))
tier = DiskTier(folder, 200_000)
for n in range(60):
    mine = [b for k in range(n, n + 3) for b in blocks(chain(range(k * 100, k * 100 + 40)))]
    tier.put(mine)
    tier._paused_until = 0.0
    files = [f for f in folder.rglob("*") if f.is_file()]
    if not files:
        continue
    file = chance.choice(files)
    size = file.stat().st_size
    match chance.randrange(4):
        case 0 if size:
            with file.open("r+b") as out:
                for at in range(chance.randrange(64), size, chance.randrange(1, 200)):
                    out.seek(at)
                    out.write(bytes([chance.randrange(256)]))
        case 1:
            with file.open("r+b") as out:
                out.truncate(chance.randrange(size + 1))
        case 2:
            file.unlink()
        case 3 if size > 256:
            with file.open("r+b") as out:
                raw = out.read()
                at = chance.randrange(1, len(raw) // 64 + 1) * 64
                out.seek(0)
                out.write(raw[at:] + raw[:at])
    found = got(tier, mine)
    assert all(g is None or g == b for g, b in zip(found, mine, strict=True)), "a wrong byte"
tier.close()
tier = DiskTier(folder, 200_000)
found = got(tier, mine)
assert all(g is None or g == b for g, b in zip(found, mine, strict=True)), "a wrong byte"
more = blocks(chain(range(7000, 7040)))
assert tier.put(more) == len(more) and got(tier, more) == more
tier.close()
"""


def survive(folder: Path, seeds: range) -> None:
    """Runs a process whose store's files are harmed again and again, once a seed."""
    for seed in seeds:
        ended = subprocess.run(
            [sys.executable, "-c", SURVIVOR, str(folder / str(seed)), str(seed)],
            capture_output=True,
            text=True,
            env={"PYTHONPATH": os.pathsep.join(sys.path)},
        )
        assert ended.returncode == 0, (seed, ended.returncode, ended.stderr[-2000:])


def test_no_process_dies(tmp_path: Path) -> None:
    """A process whose store's files are scribbled over, cut, deleted and shuffled while it writes
    and reads ends as it should, with no wrong byte."""
    survive(tmp_path, range(3))


@pytest.mark.slow
def test_no_process_dies_often(tmp_path: Path) -> None:
    """The same for a hundred processes."""
    survive(tmp_path, range(100, 200))
