"""What `greenroom kv` does with a folder."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from kvstore import upkeep
from kvstore.api import Scope
from kvstore.disk import DiskTier
from kvstore.errors import StoreError
from kvstore.testing import blocks, chain, got

if TYPE_CHECKING:
    from pathlib import Path

    from kvstore.api import Block

ROOM = 1 << 20


def owned(count: int) -> list[list[Block]]:
    """The blocks of some owners, whose names are their numbers."""
    return [blocks(chain(range(n * 50, n * 50 + 40)), owner=bytes([n]) * 16) for n in range(count)]


def filled(folder: Path, count: int = 10) -> list[list[Block]]:
    """A closed store with these in it."""
    tier = DiskTier(folder, ROOM)
    chats = owned(count)
    for mine in chats:
        tier.put(mine)
    tier.put(blocks(chain(range(8), tenant="u"), owner=b"u" * 16))
    tier.close()
    return chats


def test_stats(tmp_path: Path) -> None:
    """Blocks, payload, tenants and owners are counted from the records, in use or not."""
    chats = filled(tmp_path)
    found = upkeep.stats(tmp_path)
    (only,) = found.generations
    assert found.blocks == only.blocks == 102
    assert only.payload_bytes == sum(len(b.payload) for mine in chats for b in mine) + 512
    assert (found.spaces, found.owners) == (2, 11)
    assert only.disk_bytes >= only.payload_bytes
    assert (found.in_use, found.purges_pending) == (False, False)
    tier = DiskTier(tmp_path, ROOM)
    assert upkeep.stats(tmp_path).in_use
    tier.close()
    assert upkeep.stats(tmp_path / "nothing").blocks == 0


def test_verify(tmp_path: Path) -> None:
    """A sound folder has no problems; each kind of damage is named, and nothing is changed."""
    chats = filled(tmp_path)
    assert upkeep.verify(tmp_path) == upkeep.VerifyReport(102, 0, ())
    file = tmp_path / "gen-00000001" / "records"
    raw = bytearray(file.read_bytes())
    at = raw.index(bytes(chats[0][3].payload))
    raw[at] ^= 1
    raw[raw.index(b"GRKV", at) + 40] ^= 1
    file.write_bytes(raw)
    report = upkeep.verify(tmp_path)
    assert (report.records, report.damaged) == (100, 1)
    assert [p.split(": ", 1)[0] for p in report.problems] == ["gen-00000001"] * len(report.problems)
    assert any("is damaged" in p for p in report.problems)
    assert any("belong to no record" in p for p in report.problems)
    assert file.read_bytes() == bytes(raw)
    index = tmp_path / "gen-00000001" / "data.mdb"
    index.write_bytes(b"x" * 9000)
    assert any("index" in p for p in upkeep.verify(tmp_path).problems)
    assert not upkeep.verify(tmp_path).is_clean


def test_compact_gives_bytes_back(tmp_path: Path) -> None:
    """Generations that are mostly gaps are rewritten; what is held stays held."""
    chats = filled(tmp_path)
    assert upkeep.compact(tmp_path).rewritten == 0
    space = chats[0][0].key.prefix.space
    for mine in chats[:8]:
        assert upkeep.purge(tmp_path, Scope(space, mine[0].owner)).deleted == len(mine)
    length = (tmp_path / "gen-00000001" / "records").stat().st_size
    report = upkeep.compact(tmp_path)
    assert report.rewritten == 1
    assert report.after <= report.before
    assert (tmp_path / "gen-00000001" / "records").stat().st_size < length / 3
    assert upkeep.verify(tmp_path) == upkeep.VerifyReport(22, 0, ())
    tier = DiskTier(tmp_path, ROOM)
    assert tier.stats().damaged == 0
    assert got(tier, chats[8] + chats[9]) == chats[8] + chats[9]
    tier.close()


def test_compact_under_a_running_store(tmp_path: Path) -> None:
    """A store that rewrites its own files serves every block before and after, and deletes."""
    tier = DiskTier(tmp_path, ROOM)
    chats = owned(6)
    for mine in chats:
        tier.put(mine)
    space = chats[0][0].key.prefix.space
    tier.purge(Scope(space, chats[2][0].owner))
    tier.purge(Scope(space, chats[3][0].owner))
    assert tier.compact() == 1
    kept = chats[0] + chats[1] + chats[4] + chats[5]
    assert got(tier, kept) == kept
    assert tier.put(chats[2]) == len(chats[2])
    assert tier.purge(Scope(space, chats[4][0].owner)) == len(chats[4])
    assert got(tier, chats[4] + chats[2]) == [None] * len(chats[4]) + chats[2]
    tier.close()
    assert upkeep.verify(tmp_path).is_clean


def test_a_running_engine_is_left_alone(tmp_path: Path) -> None:
    """What changes or reads whole files is refused while the folder is in use."""
    tier = DiskTier(tmp_path, ROOM)
    tier.put(owned(1)[0])
    with pytest.raises(StoreError, match="in use"):
        upkeep.verify(tmp_path)
    with pytest.raises(StoreError, match="in use"):
        upkeep.compact(tmp_path)
    with pytest.raises(StoreError, match="in use"):
        upkeep.purge(tmp_path, Scope(b"s" * 16))
    tier.close()


def test_no_such_folder(tmp_path: Path) -> None:
    """A folder that is not there is said to be so, and not made."""
    for act in (upkeep.verify, upkeep.compact):
        with pytest.raises(StoreError, match="is no folder"):
            act(tmp_path / "kv")
    with pytest.raises(StoreError, match="is no folder"):
        upkeep.purge(tmp_path / "kv", Scope(b"s" * 16))
    assert not (tmp_path / "kv").exists()
