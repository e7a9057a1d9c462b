"""The process that has LMDB's files open, so that ours does not die of them."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest
from lmdb import verify

from kvstore import keeper as module
from kvstore.errors import StoreError
from kvstore.keeper import Keeper, KeeperLost

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ROWS = [(bytes([n]) * 49, bytes([n]) * 40) for n in range(50)]


@pytest.fixture
def keeper(tmp_path: Path) -> Iterator[Keeper]:
    made = Keeper(tmp_path)
    yield made
    made.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "gen-00000001"
    made.mkdir()
    return made


def test_keeps_rows(tmp_path: Path, folder: Path, keeper: Keeper) -> None:
    """Rows that were put are there for the next process, and the file verifies."""
    assert keeper.open(folder) == []
    keeper.put(folder, ROWS[:30])
    keeper.put(folder, ROWS[30:])
    assert keeper.state(folder)["entries"] == len(ROWS)
    keeper.close()
    assert verify.verify(str(folder)) == []
    other = Keeper(tmp_path)
    assert other.open(folder) == ROWS
    other.close()


def test_rewrite_leaves_nothing_behind(folder: Path, keeper: Keeper) -> None:
    """Rows that a rewrite leaves out are in no byte of the file."""
    keeper.open(folder)
    keeper.put(folder, ROWS)
    keeper.rewrite(folder, ROWS[:5])
    raw = b"".join(f.read_bytes() for f in folder.rglob("*") if f.is_file())
    assert all((key in raw) == (n < 5) for n, (key, _) in enumerate(ROWS))
    keeper.put(folder, ROWS[5:7])
    keeper.close()
    assert keeper.open(folder) == ROWS[:7]
    assert [f.name for f in folder.iterdir()] == ["data.mdb"]


def test_map_grows(folder: Path, keeper: Keeper) -> None:
    """More rows than the map had room for are no error."""
    keeper.open(folder)
    for first in range(0, 60_000, 20_000):
        rows = [(n.to_bytes(49, "big"), bytes(400)) for n in range(first, first + 20_000)]
        keeper.put(folder, rows)
    assert keeper.state(folder)["entries"] == 60_000
    assert (folder / "data.mdb").stat().st_size > module.MAP_BYTES


def test_damaged_file_is_refused(folder: Path, keeper: Keeper) -> None:
    """A file with any finding is not opened; the process stays, and can make the index anew."""
    (folder / "data.mdb").write_bytes(b"this is not a database" * 1000)
    with pytest.raises(StoreError) as caught:
        keeper.open(folder)
    assert not isinstance(caught.value, KeeperLost)
    keeper.rewrite(folder, ROWS)
    keeper.close()
    assert keeper.open(folder) == ROWS


def test_unknown_folder(folder: Path, keeper: Keeper) -> None:
    """An order for an index that is not open is refused."""
    with pytest.raises(StoreError):
        keeper.put(folder, ROWS)
    with pytest.raises(StoreError):
        keeper.state(folder)
    keeper.drop(folder)


def test_killed(folder: Path, keeper: Keeper) -> None:
    """A process that was killed is an error once; the next order starts another."""
    keeper.open(folder)
    pid = keeper.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(KeeperLost):
        keeper.put(folder, ROWS)
    assert keeper.pid is None
    keeper.rewrite(folder, ROWS)
    assert keeper.pid not in (None, pid)
    assert keeper.state(folder)["entries"] == len(ROWS)


def test_truncated_under_it(folder: Path, keeper: Keeper) -> None:
    """A file cut short while it is mapped costs that process its life, if anybody's."""
    keeper.open(folder)
    keeper.put(folder, [(n.to_bytes(49, "big"), bytes(100)) for n in range(5000)])
    os.truncate(folder / "data.mdb", 4096)
    with contextlib.suppress(StoreError):
        for n in range(50):
            keeper.put(folder, [(os.urandom(49), bytes(n)) for _ in range(100)])
    keeper.rewrite(folder, ROWS)
    keeper.close()
    assert keeper.open(folder) == ROWS


def test_hung(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that does not answer is killed when its time is over."""
    monkeypatch.setattr(module, "ANSWER_SECONDS", 0.2)
    program = "from kvstore.keeper import serve\nimport time\nserve(lambda name: time.sleep(60))"
    slow = Keeper(tmp_path, program)
    slow.open(folder)
    pid = slow.pid
    assert pid is not None
    with pytest.raises(KeeperLost, match="did not answer"):
        slow.put(folder, ROWS)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_ends_with_its_parent(tmp_path: Path, folder: Path) -> None:
    """The process is gone soon after its parent was killed, and another may take over at once."""
    program = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom kvstore.keeper import Keeper\n"
        "k = Keeper(Path(sys.argv[1])); k.open(Path(sys.argv[2])); print(k.pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path), str(folder)],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    other = Keeper(tmp_path)
    assert other.open(folder) == []
    other.close()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and os.path.exists(f"/proc/{int(ended.stdout)}/exe"):
        time.sleep(0.01)
    assert time.monotonic() < deadline
