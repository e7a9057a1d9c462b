"""One generation of the disk tier."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from kvstore.errors import RecordDamaged
from kvstore.generation import Entry, Generation, decode_row, encode_row
from kvstore.keeper import Keeper
from kvstore.testing import blocks, chain

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def keeper(tmp_path: Path) -> Iterator[Keeper]:
    made = Keeper(tmp_path)
    yield made
    made.close()


@pytest.mark.parametrize("owner", [b"", b"o" * 16])
def test_row(owner: bytes) -> None:
    """A row of the index is what was encoded, and any other byte in it is found."""
    key = blocks(chain(range(8)))[0].key
    entry = Entry(1 << 40, 448, 495_360, owner)
    raw, value = encode_row(key, entry)
    assert decode_row((raw, value)) == (key, entry)
    for index in range(len(raw)):
        with pytest.raises(RecordDamaged):
            decode_row((raw[:index] + bytes([raw[index] ^ 1]) + raw[index + 1 :], value))
    for index in range(len(value)):
        with pytest.raises(RecordDamaged):
            decode_row((raw, value[:index] + bytes([value[index] ^ 1]) + value[index + 1 :]))
        with pytest.raises(RecordDamaged):
            decode_row((raw, value[:index]))


def test_records_that_the_index_has_not_heard_of(tmp_path: Path, keeper: Keeper) -> None:
    """What was written and not yet indexed is taken up, what is torn is wiped."""
    folder = tmp_path / "gen-00000001"
    first = Generation(folder, keeper)
    mine = [replace(b, owner=b"o" * 16) for b in blocks(chain(range(30)))]
    entries = first.append(mine[:2])
    first.held |= entries
    first.index(entries)
    torn = first.append(mine[2:])[mine[-1].key]
    with (folder / "records").open("r+b") as file:
        file.seek(torn.place + torn.head_bytes + 3)
        file.write(b"\xff\xff")
    keeper.close()
    again = Generation(folder, keeper)
    assert again.problem == ""
    assert set(again.held) == {b.key for b in mine[:-1]}
    assert all(entry.owner == b"o" * 16 for entry in again.held.values())
    for block in mine[:-1]:
        buffer = bytearray(len(block.payload))
        ids = again.read([(block.key, again.held[block.key], memoryview(buffer))])
        assert (ids, bytes(buffer)) == ([block.ids], block.payload)
    raw = (folder / "records").read_bytes()
    assert not any(raw[torn.place :])


def test_an_index_of_another_segment(tmp_path: Path, keeper: Keeper) -> None:
    """An index that does not fit the segment is not believed; the segment is read."""
    mine, others = blocks(chain(range(30))), blocks(chain(range(60, 80)))
    for number, these in ((1, mine), (2, others)):
        made = Generation(tmp_path / f"gen-0000000{number}", keeper)
        made.held = made.append(these)
        made.index(made.held)
    keeper.close()
    (tmp_path / "gen-00000001" / "data.mdb").replace(tmp_path / "gen-00000002" / "data.mdb")
    again = Generation(tmp_path / "gen-00000002", keeper)
    assert again.problem
    assert set(again.held) == {b.key for b in others}
