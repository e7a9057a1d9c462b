"""Deletion from disk: nothing of it is left in any file, whenever it is interrupted."""

from __future__ import annotations

import os
import random
import signal
from typing import TYPE_CHECKING

import pytest

from kvstore import keeper, upkeep
from kvstore.api import Block, BlockKey, PrefixKey, Scope
from kvstore.disk import DiskTier
from kvstore.errors import StoreError
from kvstore.keeper import Keeper
from kvstore.testing import got

if TYPE_CHECKING:
    from pathlib import Path

ROOM = 1 << 20
ANN, BEN = b"ann" + b"\xaa" * 13, b"ben" + b"\xbb" * 13
PERSONA = b"per" + b"\xcc" * 13


def marked(space: bytes, owner: bytes, count: int = 6) -> list[Block]:
    """Blocks whose payload, ids, digest, owner and space are all noise that can be looked for."""
    noise = random.Random(space + owner)
    made = []
    for index in range(count):
        prefix = PrefixKey(space, noise.randbytes(16), 16 * index + 16, noise.getrandbits(60))
        key = BlockKey(prefix, 16 * index, 0)
        made.append(Block(key, noise.randbytes(64), noise.randbytes(3000 + 64 * index), owner))
    return made


def marks(block: Block) -> list[bytes]:
    """Bytes by which a trace of a block would be known."""
    payload = bytes(block.payload)
    pieces = [payload[at : at + 24] for at in range(0, len(payload) - 24, 512)]
    return [block.key.prefix.digest, block.ids[:16], *pieces]


def left(folder: Path, needles: list[bytes]) -> list[str]:
    """The files, holes and all, that have any of these bytes."""
    found = []
    for file in folder.rglob("*"):
        if file.is_file():
            raw = file.read_bytes()
            found += [file.name for needle in needles if needle in raw]
    return found


TENANT, OTHER = b"T" + b"\x11" * 15, b"U" + b"\x22" * 15
KEPT = {
    "conversation": [(TENANT, BEN), (TENANT, PERSONA), (TENANT, b""), (OTHER, ANN)],
    "persona": [(TENANT, ANN), (TENANT, BEN), (TENANT, b""), (OTHER, ANN)],
    "tenant": [(OTHER, ANN)],
}
SCOPES = {
    "conversation": Scope(TENANT, ANN),
    "persona": Scope(TENANT, PERSONA),
    "tenant": Scope(TENANT),
}
EVERYBODY = [(TENANT, ANN), (TENANT, BEN), (TENANT, PERSONA), (TENANT, b""), (OTHER, ANN)]


@pytest.mark.parametrize("reopened", [False, True])
@pytest.mark.parametrize("what", SCOPES)
def test_nothing_is_left(tmp_path: Path, what: str, reopened: bool) -> None:
    """No file has a payload, an id, a key or an owner of what was deleted, and the rest is whole,
    before and after a restart."""
    tier = DiskTier(tmp_path, ROOM)
    # Interleaved, so that what goes lies between what stays.
    people = [marked(*who) for who in EVERYBODY]
    for batch in zip(*people, strict=True):
        assert tier.put(batch) == len(batch)
    if reopened:
        tier.close()
        tier = DiskTier(tmp_path, ROOM)
    scope = SCOPES[what]
    gone = [b for mine in people for b in mine if scope.holds(b)]
    kept = [b for mine in people for b in mine if not scope.holds(b)]
    assert {(b.key.prefix.space, b.owner) for b in kept} == set(KEPT[what])
    traces = [m for b in gone for m in marks(b)]
    traces += [TENANT] if scope.owner is None else []
    assert len(left(tmp_path, traces)) >= len(traces)
    assert tier.purge(scope) == len(gone)
    for _ in range(2):
        assert left(tmp_path, traces) == []
        assert got(tier, gone) == [None] * len(gone)
        assert got(tier, kept) == kept
        tier.close()
        assert upkeep.verify(tmp_path).is_clean
        tier = DiskTier(tmp_path, ROOM)
    assert tier.purge(scope) == 0
    tier.close()


def test_gives_bytes_back(tmp_path: Path) -> None:
    """Where the file system has holes, what is deleted takes no room on the disk any more."""
    tier = DiskTier(tmp_path, 1 << 30)
    key = marked(TENANT, ANN, 1)[0].key
    big = Block(key, bytes(64), random.Random(0).randbytes(8 << 20), ANN)
    tier.put([big])
    os.sync()
    before = upkeep.stats(tmp_path).disk_bytes
    tier.purge(Scope(TENANT, ANN))
    assert before - upkeep.stats(tmp_path).disk_bytes > 7 << 20
    tier.close()


@pytest.mark.parametrize(
    "name",
    [
        "purge_noted",
        "purge_found",
        "records_forgotten",
        "record_wiped",
        "records_wiped",
        "purge_erased",
    ],
)
@pytest.mark.parametrize("again", [False, True])
def test_cut_short(tmp_path: Path, name: str, again: bool) -> None:
    """A deletion that fails anywhere raises; the next try, or the next start, finishes it."""
    broken = [True]

    def fail(point: str) -> None:
        if point == name and broken:
            raise OSError(5, "Input/output error")

    mine, others = marked(TENANT, ANN), marked(TENANT, BEN)
    tier = DiskTier(tmp_path, ROOM, failpoint=fail)
    tier.put(mine + others)
    with pytest.raises(StoreError, match="could be deleted yet"):
        tier.purge(Scope(TENANT, ANN))
    assert (tmp_path / "PURGE").exists()
    broken.clear()
    if again:
        tier.purge(Scope(TENANT, ANN))
    else:
        tier.close()
        tier = DiskTier(tmp_path, ROOM)
    assert left(tmp_path, [m for b in mine for m in marks(b)]) == []
    assert got(tier, mine + others) == [None] * len(mine) + others
    assert not (tmp_path / "PURGE").exists()
    assert tier.stats().damaged == 0
    tier.close()


def test_damaged_order(tmp_path: Path) -> None:
    """Where it cannot be read any more whose blocks were to go, all of them go."""
    tier = DiskTier(tmp_path, ROOM)
    mine = marked(TENANT, ANN) + marked(OTHER, ANN)
    tier.put(mine)
    tier.close()
    (tmp_path / "PURGE").write_bytes(b"not what was written")
    tier = DiskTier(tmp_path, ROOM)
    assert tier.held() == []
    assert tier.stats().damaged == 1
    assert left(tmp_path, [m for b in mine for m in marks(b)]) == []
    tier.close()
    assert not (tmp_path / "PURGE").exists()


def test_damaged_records_are_deleted_too(tmp_path: Path) -> None:
    """A record that was found damaged is still somebody's, and goes with the rest."""
    tier = DiskTier(tmp_path, ROOM)
    mine = marked(TENANT, ANN)
    tier.put(mine)
    file = tmp_path / "gen-00000001" / "records"
    raw = bytearray(file.read_bytes())
    raw[-200] ^= 1
    with file.open("r+b") as out:
        out.write(raw)
    assert got(tier, mine) == [*mine[:-1], None]
    tier.purge(Scope(TENANT))
    assert left(tmp_path, [m for b in mine for m in marks(b)]) == []
    tier.close()


@pytest.mark.parametrize("name", ["index_rewritten", "index_removed"])
def test_index_process_dies_in_a_deletion(tmp_path: Path, name: str) -> None:
    """The process of the index is killed while it forgets: another one does it over."""
    flag = tmp_path / "died"
    program = (
        "import os, sys\n"
        "from kvstore.keeper import serve\n"
        "def die(name):\n"
        f"    if name == {name!r} and not os.path.exists({str(flag)!r}):\n"
        f"        open({str(flag)!r}, 'w').close(); os.kill(os.getpid(), {int(signal.SIGKILL)})\n"
        "serve(die)\n"
    )
    folder = tmp_path / "kv"
    tier = DiskTier(folder, ROOM, keeper=Keeper(folder, program))
    mine, others = marked(TENANT, ANN), marked(TENANT, BEN)
    tier.put(mine + others)
    assert tier.purge(Scope(TENANT, ANN)) == len(mine)
    assert flag.exists()
    assert left(folder, [m for b in mine for m in marks(b)]) == []
    assert got(tier, others) == others
    tier.close()
    tier = DiskTier(folder, ROOM)
    assert got(tier, mine + others) == [None] * len(mine) + others
    tier.close()


def test_no_index_process_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no index can be kept the store serves on, says that it could not delete, and the next
    start does it."""
    tier = DiskTier(tmp_path, ROOM)
    mine, others = marked(TENANT, ANN), marked(TENANT, BEN)
    tier.put(mine)
    with monkeypatch.context() as broken:
        broken.setattr(keeper.Keeper, "_start", _cannot_start)
        tier._keeper.close()
        assert tier.put(others) == len(others)
        assert got(tier, mine + others) == mine + others
        assert tier.stats().errors > 0
        with pytest.raises(StoreError, match="could be deleted yet"):
            tier.purge(Scope(TENANT, ANN))
        tier.close()
    tier = DiskTier(tmp_path, ROOM)
    assert left(tmp_path, [m for b in mine for m in marks(b)]) == []
    assert got(tier, mine + others) == [None] * len(mine) + others
    tier.close()


def _cannot_start(_: Keeper) -> None:
    raise OSError(11, "no more processes")
