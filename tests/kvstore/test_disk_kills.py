"""SIGKILL at every named point where files change: what is left is sound, and right."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from kvstore import upkeep
from kvstore.disk import DiskTier
from kvstore.testing import blocks, chain, got

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ROOM = 60_000
WRITER = """
import os, random, signal, sys
from pathlib import Path
from kvstore import segment
from kvstore.api import Scope
from kvstore.disk import DiskTier
from kvstore.errors import StoreError
from kvstore.keeper import Keeper
from kvstore.testing import blocks, chain

segment.MAX_PIECES = 3  # so that a batch is torn between any two records
POINTS = sys.argv[2].split()
KEEPER = '''
import os, signal
from kvstore.keeper import serve
left = {left}
def failpoint(name):
    global left
    left -= name == {target!r}
    if left == 0:
        open({said!r}, "a").write("at " + name + chr(10))
        os.kill(os.getpid(), signal.SIGKILL)
serve(failpoint)
'''

def write(folder, seed):
    said = open(folder / "said", "a", buffering=1)
    chance = random.Random(seed)
    target = POINTS[seed % len(POINTS)]
    left = chance.randrange(1, 4)
    def kill(name):
        said.write(f"at {name}" + chr(10))
        os.kill(os.getpid(), signal.SIGKILL)
    def failpoint(name):
        nonlocal left
        left -= name == target
        if left == 0:
            kill(name)
    if target == "manifest_written":
        left = 1
        (folder / "kv" / "MANIFEST.json").unlink(missing_ok=True)
    program = KEEPER.format(left=left, target=target, said=str(folder / "said"))
    keeper = Keeper(folder / "kv", program)
    tier = DiskTier(folder / "kv", ROOM, failpoint=failpoint, keeper=keeper)
    for _ in range(chance.randrange(2, 8)):
        n = chance.randrange(40)
        of = chain(range(n * 100, n * 100 + chance.randrange(1, 60)))
        mine = blocks(of, owner=bytes([n]) * 16)
        tier.put(mine)
        what = chance.choice(["write", "write", "purge", "discard", "compact"])
        if what in ("purge", "compact"):
            said.write(f"purging {n}" + chr(10))
            try:
                tier.purge(Scope(of.space, bytes([n]) * 16))
                said.write(f"purged {n}" + chr(10))
            except StoreError:
                pass  # the index process died twice
        if what == "discard":
            tier.discard([b.key for b in mine])
        if what == "compact":
            tier.compact()
    kill("any")

for line in sys.stdin:  # a process for each seed, without starting Python anew
    child = os.fork()
    if not child:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # its log
        try:
            write(Path(sys.argv[1]), int(line))
        finally:
            os._exit(1)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
""".replace("ROOM", str(ROOM))

POINTS = {
    "batch_begun",
    "generation_dropping",
    "generation_made",
    "index_begun",
    "index_committed",
    "index_removed",
    "index_rewritten",
    "index_unlinked",
    "index_written",
    "manifest_written",
    "purge_done",
    "purge_erased",
    "purge_found",
    "purge_noted",
    "record_wiped",
    "records_forgotten",
    "records_wiped",
    "segment_appended",
    "segment_copied",
    "segment_swapped",
    "segment_written",
}


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that writes into tmp_path/kv until it is killed, once for each seed it is told."""
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path), " ".join(sorted(POINTS))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    ) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()


def killed_rounds(writer: subprocess.Popen[str], folder: Path, seeds: range) -> set[str]:
    """Kills the writer once for each seed, at each point in turn; the points it met."""
    assert writer.stdin is not None
    assert writer.stdout is not None
    met = set()
    (folder / "kv").mkdir()
    for seed in seeds:
        (folder / "said").write_text("")
        writer.stdin.write(f"{seed}\n")
        writer.stdin.flush()
        assert int(writer.stdout.readline()) == -signal.SIGKILL, seed
        said = (folder / "said").read_text().splitlines()
        met |= {line.removeprefix("at ") for line in said if line.startswith("at ")}
        check_after_kill(folder / "kv", [line for line in said if not line.startswith("at ")])
    return met


def check_after_kill(folder: Path, said: list[str]) -> None:
    """Opens the store: nothing is damaged, nothing is wrong, no deletion is half done."""
    tier = DiskTier(folder, ROOM)
    unfinished: set[str] = set()
    for what, owner in map(str.split, said):
        (unfinished.add if what == "purging" else unfinished.discard)(owner)
    for n in range(40):
        mine = blocks(chain(range(n * 100, n * 100 + 60)), owner=bytes([n]) * 16)
        found = got(tier, mine)
        assert all(g is None or g == b for g, b in zip(found, mine, strict=True))
        assert str(n) not in unfinished or not any(found)
    assert tier.stats().damaged == 0
    tier.close()
    report = upkeep.verify(folder)
    assert report.is_clean, report.problems
    assert report.records == upkeep.stats(folder).blocks


def test_killed_at_failpoints(writer: subprocess.Popen[str], tmp_path: Path) -> None:
    """After SIGKILL at any point of a write or a deletion, files verify and blocks are right."""
    missed = POINTS - killed_rounds(writer, tmp_path, range(42))
    assert len(missed) <= 6, missed


@pytest.mark.slow
def test_killed_at_failpoints_500_times(writer: subprocess.Popen[str], tmp_path: Path) -> None:
    """The same, 520 seeded rounds, every named point among them."""
    assert POINTS - killed_rounds(writer, tmp_path, range(1000, 1520)) == set()
