"""Blocks in LMDB: kept over restarts, bounded, and never wrong, whatever happens to the files."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import lmdb
import pytest
from lmdb import verify

from kvstore.disk import MANIFEST, DiskTier
from kvstore.errors import StoreError
from kvstore.testing import TierContract, blocks, chain

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from kvstore.api import Block, Tier

ROOM = 1 << 20


class TestContract(TierContract):
    @pytest.fixture
    def tier(self, tmp_path: Path) -> Iterator[Tier]:
        tier = DiskTier(tmp_path / "kv", ROOM)
        yield tier
        tier.close()


def filled(folder: Path, chats: int = 4) -> list[Block]:
    """A closed store with some chats in it."""
    tier = DiskTier(folder, ROOM)
    mine = [b for n in range(chats) for b in blocks(chain(range(n, n + 40)))]
    assert tier.put(mine) == len(mine)
    tier.close()
    return mine


def data_file(folder: Path) -> Path:
    return folder / "gen-00000001" / "data.mdb"


def check_never_wrong(folder: Path, mine: list[Block]) -> int:
    """Opens the store, compares everything it gives with what was put, uses it, counts hits."""
    tier = DiskTier(folder, ROOM)
    got = tier.get([b.key for b in mine])
    assert all(g is None or g == b for g, b in zip(got, mine, strict=True))
    again = blocks(chain(range(90, 110)))
    assert tier.put(again) == len(again)
    assert tier.get([again[0].key]) == [again[0]]
    tier.close()
    return sum(g is not None for g in got)


def test_outlives_the_process(tmp_path: Path) -> None:
    """A closed store that is opened again has every block, bit for bit."""
    mine = filled(tmp_path)
    assert check_never_wrong(tmp_path, mine) == len(mine)


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
    room = 2_000_000
    tier = DiskTier(tmp_path, room)
    for n in range(400):
        last = blocks(chain(range(n, n + 64)))
        tier.put(last)
        assert tier.stats().bytes <= room
    assert tier.leading([b.key for b in last]) == len(last)
    assert tier.stats().evicted > 0
    assert len(list(tmp_path.glob("gen-*"))) <= 5
    assert sum(f.stat().st_size for f in tmp_path.rglob("data.mdb")) < 1.25 * room
    tier.close()


@pytest.mark.parametrize("seed", range(12))
def test_flipped_bytes(tmp_path: Path, seed: int) -> None:
    """Flipped bytes anywhere in the file cost blocks, never a wrong one and never an error."""
    mine = filled(tmp_path)
    file = data_file(tmp_path)
    raw = bytearray(file.read_bytes())
    chance = random.Random(seed)
    for _ in range(1 + seed * 3):
        raw[chance.randrange(len(raw))] ^= 1 << chance.randrange(8)
    file.write_bytes(raw)
    check_never_wrong(tmp_path, mine)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_truncated(tmp_path: Path, share: float) -> None:
    """A file cut short is dropped, or serves only right blocks."""
    mine = filled(tmp_path)
    raw = data_file(tmp_path).read_bytes()
    data_file(tmp_path).write_bytes(raw[: int(len(raw) * share)])
    check_never_wrong(tmp_path, mine)


def test_garbage_file(tmp_path: Path) -> None:
    """A file that is no LMDB at all is dropped and counted."""
    mine = filled(tmp_path)
    data_file(tmp_path).write_bytes(b"this is not a database" * 1000)
    tier = DiskTier(tmp_path, ROOM)
    assert tier.stats().damaged == 1
    assert tier.held() == []
    tier.close()
    assert check_never_wrong(tmp_path, mine) == 0


def test_record_of_another_key(tmp_path: Path) -> None:
    """A right record under a wrong key is a counted miss."""
    mine = filled(tmp_path)
    env = lmdb.open(str(data_file(tmp_path).parent), lib_version=0)
    with env.begin(write=True) as txn:
        pairs = [(bytes(k), bytes(v)) for k, v in txn.cursor()]
        txn.put(pairs[0][0], pairs[1][1])
        txn.put(pairs[2][0], pairs[2][1][:-10])  # half a record
    env.close()
    tier = DiskTier(tmp_path, ROOM)
    got = tier.get([b.key for b in mine])
    assert sum(g is None for g in got) == 2
    assert all(g is None or g == b for g, b in zip(got, mine, strict=True))
    assert tier.stats().damaged == 2
    tier.close()


def test_other_version_is_dropped(tmp_path: Path) -> None:
    """Files of another record version or LMDB engine are dropped, not read."""
    mine = filled(tmp_path)
    (tmp_path / "MANIFEST.json").write_text('{"record": 99, "lmdb": 0}')
    assert check_never_wrong(tmp_path, mine) == 0


def test_deleted_under_a_running_store(tmp_path: Path) -> None:
    """Files deleted while the store runs: right blocks or misses now, an empty start later."""
    mine = filled(tmp_path)
    tier = DiskTier(tmp_path, ROOM)
    data_file(tmp_path).unlink()
    got = tier.get([b.key for b in mine])
    assert all(g is None or g == b for g, b in zip(got, mine, strict=True))
    tier.put(blocks(chain(range(70, 90))))
    tier.close()
    check_never_wrong(tmp_path, mine)


WRITER = """
import sys
from pathlib import Path
from kvstore.disk import DiskTier
from kvstore.testing import blocks, chain
tier = DiskTier(Path(sys.argv[1]), 1 << 20)
for n in range(int(sys.argv[2]), 10**9):
    tier.put(blocks(chain(range(n, n + 40))))
    print(n, flush=True)
"""


def test_killed_while_writing(tmp_path: Path) -> None:
    """After SIGKILL in the middle of writing, what is there is sound and right, every round."""
    first = 0
    for rounds in range(6):
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path), str(first)],
            stdout=subprocess.PIPE,
            text=True,
            env={"PYTHONPATH": ":".join(sys.path)},
        ) as child:
            assert child.stdout
            for _ in range(3 + 7 * rounds):
                last = int(child.stdout.readline())
            child.send_signal(signal.SIGKILL)
            child.stdout.read()
        for data in tmp_path.glob("gen-*/data.mdb"):
            assert data.stat().st_size < 8192 or verify.verify(str(data.parent)) == []
        tier = DiskTier(tmp_path, ROOM)
        assert tier.stats().damaged == 0
        mine = blocks(chain(range(last, last + 40)))
        assert tier.get([b.key for b in mine]) == mine
        tier.close()
        first = last + 1


FULL = """
import resource, sys
from pathlib import Path
from kvstore.disk import DiskTier
from kvstore.testing import blocks, chain
tier = DiskTier(Path(sys.argv[1]), 1 << 20)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
first, refused = 0, 0
while not tier.stats().errors:
    refused = len(blocks(chain(range(first, first + 40))))
    tier.put(blocks(chain(range(first, first + 40))))
    first += 1
tier.put(blocks(chain([9])))
stats = tier.stats()
mine = [b for n in range(first - 1) for b in blocks(chain(range(n, n + 40)))]
print(stats.errors, stats.refused - refused, tier.get([b.key for b in mine]) == mine, first)
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
    assert verify.verify(str(tmp_path / "gen-00000001")) == []
    mine = [b for n in range(int(stored) - 1) for b in blocks(chain(range(n, n + 40)))]
    assert check_never_wrong(tmp_path, mine) == len(mine)


def test_writes_go_on_after_a_pause(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failed write is tried again when the pause is over, in a new generation."""
    monkeypatch.setattr("kvstore.disk.PAUSE_SECONDS", 0.0)
    monkeypatch.setattr("kvstore.disk.SPARE", -140_000)  # LMDB's map is full before the share is
    tier = DiskTier(tmp_path, 400_000)
    last: list[Block] = []
    for n in range(40):
        last = blocks(chain(range(n, n + 16)))
        tier.put(last)
    stats = tier.stats()
    assert 0 < stats.errors < 20
    assert stats.stored + stats.refused == 40 * len(last)
    assert len(list(tmp_path.glob("gen-*"))) > 1
    assert tier.put(last) == len(last) or tier.put(last) == len(last)
    assert tier.get([b.key for b in last]) == last
    tier.close()


def test_reads_wait_for_no_write(tmp_path: Path) -> None:
    """While a write holds the files, the index, the counters and stored blocks are there."""
    tier = DiskTier(tmp_path, ROOM)
    mine = blocks(chain(range(20)))
    tier.put(mine)
    with tier._writing, ThreadPoolExecutor(1) as other:
        assert other.submit(tier.get, [b.key for b in mine]).result(5) == mine
        assert other.submit(tier.leading, [b.key for b in mine]).result(5) == len(mine)
        assert other.submit(tier.stats).result(5).blocks == len(mine)
        assert len(other.submit(tier.held).result(5)) == len(mine)
    tier.close()


def test_things_that_are_no_generation(tmp_path: Path) -> None:
    """Files and folders of a generation's name that are none are dropped and counted."""
    (tmp_path / "gen-00000001").write_text("a file")
    (tmp_path / "gen-later").mkdir()
    (tmp_path / "gen-later" / "data.mdb").write_bytes(bytes(10_000))
    (tmp_path / "gen-00000002").mkdir()
    (tmp_path / "gen-00000002" / "data.mdb").mkdir()
    (tmp_path / "MANIFEST.json").write_text(json.dumps(MANIFEST))
    assert check_never_wrong(tmp_path, []) == 0
    assert [f.name for f in tmp_path.glob("gen-*")] == ["gen-00000001"]
    tier = DiskTier(tmp_path, ROOM)
    assert tier.stats().damaged == 0
    tier.close()


@pytest.mark.parametrize("left", [[], ["lock.mdb"], ["data.mdb"]])
def test_killed_between_two_generations(tmp_path: Path, left: list[str]) -> None:
    """A generation that has no bytes yet, or no more, is no damage and costs nothing else."""
    mine = filled(tmp_path)
    newest = tmp_path / "gen-00000002"
    newest.mkdir()
    for name in left:
        (newest / name).touch()
    tier = DiskTier(tmp_path, ROOM)
    assert tier.stats().damaged == 0
    assert tier.get([b.key for b in mine]) == mine
    tier.close()


def test_damaged_lock_file_of_lmdb(tmp_path: Path) -> None:
    """LMDB's own lock file holds nothing: garbage in it costs no block."""
    mine = filled(tmp_path)
    lock = data_file(tmp_path).with_name("lock.mdb")
    lock.write_bytes(random.Random(0).randbytes(lock.stat().st_size))
    assert check_never_wrong(tmp_path, mine) == len(mine)


def test_only_the_owner_may_look(tmp_path: Path) -> None:
    """The folder and its generations are the owner's alone."""
    filled(tmp_path / "kv")
    for folder in (tmp_path / "kv", tmp_path / "kv" / "gen-00000001"):
        assert folder.stat().st_mode & 0o777 == 0o700


def test_generation_that_will_not_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dropped generation whose files are gone or stuck is counted; the store goes on."""

    def stuck(path: Path) -> None:
        raise OSError("stuck")

    monkeypatch.setattr("shutil.rmtree", stuck)
    tier = DiskTier(tmp_path, 100_000)
    for n in range(40):
        mine = blocks(chain(range(n, n + 16)))
        assert tier.put(mine) == len(mine)
    assert tier.stats().errors > 0
    assert tier.stats().refused == 0
    tier.close()
