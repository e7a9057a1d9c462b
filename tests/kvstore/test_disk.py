"""Blocks in LMDB: kept over restarts, bounded, and never wrong, whatever happens to the files."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import lmdb
import pytest
from lmdb import verify

from kvstore.disk import DiskTier
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
    room = 200_000
    tier = DiskTier(tmp_path, room)
    for n in range(400):
        last = blocks(chain(range(n, n + 64)))
        tier.put(last)
        assert tier.stats().bytes <= room
    assert tier.leading([b.key for b in last]) == len(last)
    assert tier.stats().evicted > 0
    assert len(list(tmp_path.glob("gen-*"))) <= 5
    # Blocks this small take a page each; real ones are 64 KiB and more.
    assert sum(f.stat().st_size for f in tmp_path.rglob("data.mdb")) < 6 * room
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
        for generation in tmp_path.glob("gen-*"):
            assert verify.verify(str(generation)) == []
        tier = DiskTier(tmp_path, ROOM)
        assert tier.stats().damaged == 0
        mine = blocks(chain(range(last, last + 40)))
        assert tier.get([b.key for b in mine]) == mine
        tier.close()
        first = last + 1


def test_failing_writes_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk stops writing: counted, nothing raised, what is there still served."""
    tier = DiskTier(tmp_path, ROOM)
    mine, more = blocks(chain(range(16))), blocks(chain(range(50, 66)))
    tier.put(mine)

    def full(size: int) -> object:
        raise lmdb.DiskError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(tier, "_newest", full)
        assert tier.put(more) == 0
    assert tier.stats().refused == len(more)
    assert tier.stats().errors == 1
    assert tier.get([mine[0].key]) == [mine[0]]
    assert tier.put(more) == len(more)
    tier.close()
