"""Blocks on disk: what is kept, what is dropped, what is deleted for good."""

from __future__ import annotations

import errno
import json
import os
import runpy
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from kvstore import upkeep
from kvstore.api import Scope
from kvstore.disk import MANIFEST, DiskTier
from kvstore.errors import StoreError
from kvstore.testing import TierContract, blocks, chain, got

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from kvstore.api import Block, Tier

ROOM = 1 << 20


class TestContract(TierContract):
    @pytest.fixture
    def tier(self, tmp_path: Path) -> Iterator[Tier]:
        made = DiskTier(tmp_path, ROOM)
        yield made
        made.close()


def filled(path: Path, chats: int = 4) -> list[Block]:
    """A closed store with a few chats; their blocks."""
    tier = DiskTier(path, ROOM)
    mine = [b for n in range(chats) for b in blocks(chain(range(n * 100, n * 100 + 40)))]
    assert tier.put(mine) == len(mine)
    tier.close()
    return mine


def reopened(path: Path, mine: list[Block]) -> int:
    """How many of the blocks a new store on the folder has; none of them is wrong."""
    tier = DiskTier(path, ROOM)
    found = got(tier, mine)
    tier.close()
    assert all(g is None or g == b for g, b in zip(found, mine, strict=True))
    return sum(g is not None for g in found)


def holds(folder: Path, needle: bytes) -> bool:
    """Whether any file under the folder has these bytes anywhere."""
    return any(needle in file.read_bytes() for file in folder.rglob("*") if file.is_file())


def test_outlives_the_process(tmp_path: Path) -> None:
    """A closed store that is opened again has every block, bit for bit."""
    mine = filled(tmp_path)
    assert reopened(tmp_path, mine) == len(mine)


def test_the_documented_reader_reads_it(tmp_path: Path) -> None:
    """The example of docs/kv-record.md finds every block without our code."""
    mine = filled(tmp_path)
    records = runpy.run_path("docs/examples/read_kv.py")["records"]
    found = list(records((tmp_path / "gen-00000001" / "records").read_bytes()))
    assert [(g, first, payload) for g, first, _, _, payload in found] == [
        (b.key.group, b.key.start, b.payload) for b in mine
    ]
    assert found[0][3] == list(range(8))


def test_one_process_at_a_time(tmp_path: Path) -> None:
    """A folder that is in use is refused with one clear line, and free again after close."""
    tier = DiskTier(tmp_path, ROOM)
    with pytest.raises(StoreError, match="in use by another process"):
        DiskTier(tmp_path, ROOM)
    tier.close()
    DiskTier(tmp_path, ROOM).close()


def test_unwritable_folder(tmp_path: Path) -> None:
    """A folder that cannot be made is refused with one clear line."""
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"KV folder .*: Not a directory"):
        DiskTier(tmp_path / "file" / "kv", ROOM)


def test_quota_drops_the_oldest_generation(tmp_path: Path) -> None:
    """However much is put, the files stay about the quota and the newest blocks stay."""
    room = 200_000
    tier = DiskTier(tmp_path, room)
    for n in range(100):
        last = blocks(chain(range(n, n + 64)))
        tier.put(last)
        assert tier.stats().bytes <= room
        assert sum(f.stat().st_size for f in tmp_path.rglob("records")) <= room
    assert tier.leading([b.key for b in last]) == len(last)
    assert tier.stats().evicted > 0
    assert len(list(tmp_path.glob("gen-*"))) <= 5
    tier.close()


def test_other_version_is_dropped(tmp_path: Path) -> None:
    """Files of another record or index format are dropped, not read."""
    mine = filled(tmp_path)
    (tmp_path / "MANIFEST.json").write_text('{"record": 99, "index": 1}')
    assert reopened(tmp_path, mine) == 0


FULL = """
import resource, sys
from pathlib import Path
from kvstore.disk import DiskTier
from kvstore.testing import blocks, chain, got
tier = DiskTier(Path(sys.argv[1]), 1 << 20)
tier.put(blocks(chain([8])))  # the index process is there now, without the limit
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
first, refused = 0, 0
while not tier.stats().errors:
    refused = len(blocks(chain(range(first, first + 40))))
    tier.put(blocks(chain(range(first, first + 40))))
    first += 1
tier.put(blocks(chain([9])))
stats = tier.stats()
mine = [b for n in range(first - 1) for b in blocks(chain(range(n, n + 40)))]
print(stats.errors, stats.refused - refused, got(tier, mine) == mine, first)
tier.close()
"""


def test_file_that_cannot_grow(tmp_path: Path) -> None:
    """When the disk takes no more, writing stops and is counted; what is there is served on."""
    ended = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": ":".join(sys.path)},
    )
    *log, last = ended.stdout.splitlines()
    errors, refused_after, served, stored = last.split()
    assert (errors, refused_after, served) == ("1", "2", "True")
    assert sum("kv_write_failed" in line for line in log) == 1
    assert upkeep.verify(tmp_path).is_clean
    mine = [b for n in range(int(stored) - 1) for b in blocks(chain(range(n, n + 40)))]
    assert reopened(tmp_path, mine) == len(mine)


def test_writes_go_on_after_a_pause(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failed write is refused for a while, and tried again when the pause is over."""
    tier = DiskTier(tmp_path, ROOM)
    mine, more = blocks(chain(range(16))), blocks(chain(range(50, 66)))
    write = os.pwritev

    def full(fd: int, pieces: list[memoryview], at: int) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.pwritev", full)
    assert tier.put(mine) == 0
    monkeypatch.setattr("os.pwritev", write)
    assert tier.put(more) == 0  # not yet
    assert (tier.stats().errors, tier.stats().refused) == (1, len(mine) + len(more))
    monkeypatch.setattr("time.monotonic", lambda: time.perf_counter() + 1e9)
    assert tier.put(mine) == len(mine)
    assert got(tier, mine) == mine
    tier.close()


def test_reads_wait_for_no_write(tmp_path: Path) -> None:
    """While a write holds the files, the index, the counters and stored blocks are there."""
    tier = DiskTier(tmp_path, ROOM)
    mine = blocks(chain(range(20)))
    tier.put(mine)
    with tier._writing, ThreadPoolExecutor(1) as other:
        assert other.submit(got, tier, mine).result(5) == mine
        assert other.submit(tier.leading, [b.key for b in mine]).result(5) == len(mine)
        assert other.submit(tier.stats).result(5).blocks == len(mine)
        assert len(other.submit(tier.held).result(5)) == len(mine)
    tier.close()


def test_things_that_are_no_generation(tmp_path: Path) -> None:
    """Files and folders of a generation's name that are none are dropped and counted."""
    (tmp_path / "gen-00000001").write_text("a file")
    (tmp_path / "gen-later").mkdir()
    (tmp_path / "gen-later" / "records").write_bytes(bytes(10_000))
    (tmp_path / "gen-00000002" / "records").mkdir(parents=True)
    (tmp_path / "gen-00000003" / "data.mdb").mkdir(parents=True)
    (tmp_path / "gen-00000003" / "records").write_bytes(bytes(64))
    (tmp_path / "MANIFEST.json").write_text(json.dumps(MANIFEST))
    tier = DiskTier(tmp_path, ROOM)
    assert tier.stats().damaged == 4
    assert tier.put(blocks(chain(range(8)))) == 2
    tier.close()
    assert [f.name for f in tmp_path.glob("gen-*")] == ["gen-00000004"]


@pytest.mark.parametrize("left", [[], ["data.mdb"], ["records"], ["data.mdb", "records"]])
def test_killed_between_two_generations(tmp_path: Path, left: list[str]) -> None:
    """A generation that has no bytes yet, or no more, is no damage and costs nothing else."""
    mine = filled(tmp_path)
    newest = tmp_path / "gen-00000002"
    newest.mkdir()
    for name in left:
        (newest / name).touch()
    tier = DiskTier(tmp_path, ROOM)
    assert tier.stats().damaged == 0
    assert got(tier, mine) == mine
    tier.close()


def test_only_the_owner_may_look(tmp_path: Path) -> None:
    """The folder, its generations and its records are the owner's alone."""
    filled(tmp_path / "kv")
    for folder in (tmp_path / "kv", tmp_path / "kv" / "gen-00000001"):
        assert folder.stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "kv" / "gen-00000001" / "records").stat().st_mode & 0o777 == 0o600


def test_generation_that_will_not_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dropped generation whose files are gone or stuck is counted; the store goes on."""

    def stuck(path: Path, ignore_errors: bool = False) -> None:
        if not ignore_errors:
            raise OSError("stuck")

    monkeypatch.setattr("shutil.rmtree", stuck)
    tier = DiskTier(tmp_path, 20_000)
    for n in range(40):
        mine = blocks(chain(range(n, n + 16)))
        assert tier.put(mine) == len(mine)
    assert tier.stats().errors > 0
    assert tier.stats().refused == 0
    with pytest.raises(StoreError, match="not everything could be deleted"):
        tier.purge(Scope(mine[0].key.prefix.space))  # some of it lies in files that will not go
    monkeypatch.undo()
    tier.purge(Scope(mine[0].key.prefix.space))
    assert not holds(tmp_path, mine[0].key.prefix.space)
    tier.close()


@pytest.mark.parametrize("nowait", ["as it is", "never", "not supported"])
def test_what_is_not_in_memory_is_fetched_from_the_disk(
    tmp_path: Path, nowait: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A restore whose bytes the system has dropped from memory is as right as any."""
    mine = filled(tmp_path)
    tier = DiskTier(tmp_path, ROOM)
    with (tmp_path / "gen-00000001" / "records").open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    read = os.preadv

    def refusing(fd: int, into: list[memoryview], at: int, flags: int = 0) -> int:
        if flags:
            raise OSError(errno.EAGAIN if nowait == "never" else errno.EOPNOTSUPP, "no")
        return read(fd, into, at)

    if nowait != "as it is":
        monkeypatch.setattr("os.preadv", refusing)
    assert got(tier, mine) == mine
    stats = tier.stats()
    assert (stats.hits, stats.misses, stats.damaged) == (len(mine), 0, 0)
    tier.close()
