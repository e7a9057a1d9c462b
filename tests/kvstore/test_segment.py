"""A file of records."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvstore import segment as module
from kvstore.errors import RecordDamaged
from kvstore.record import encode_head
from kvstore.segment import Segment, padded
from kvstore.testing import blocks, chain

if TYPE_CHECKING:
    from pathlib import Path

    from kvstore.api import Block


def extent(block: Block, place: int) -> tuple[int, int]:
    """Place and size of a record, padding included."""
    return place, padded(len(encode_head(block)) + len(block.payload))


def written(path: Path, mine: list[Block]) -> tuple[Segment, list[int]]:
    """A segment with the records of these blocks, and where they are."""
    segment = Segment(path)
    return segment, segment.append([(encode_head(b), b.payload) for b in mine])


@pytest.mark.parametrize("pieces", [1, 2, 512])
def test_append_and_read(tmp_path: Path, pieces: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Records lie at multiples of 64 and are read into the caller's buffers, after a restart too,
    however many system calls a batch takes."""
    monkeypatch.setattr(module, "MAX_PIECES", pieces)
    mine = blocks(chain(range(30)))
    segment, places = written(tmp_path / "s", mine)
    for each in (segment, Segment(tmp_path / "s")):
        for block, place in zip(mine, places, strict=True):
            head, payload = bytearray(encode_head(block)), bytearray(len(block.payload))
            expected = bytes(head)
            assert each.read(place, [memoryview(head), memoryview(payload)])
            assert (bytes(head), bytes(payload)) == (expected, block.payload)
            assert place % 64 == 0
        assert each.end % 64 == 0


def test_partial_system_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A system that writes and reads a few bytes at a time gives the same file and bytes."""
    mine = blocks(chain(range(30)))
    written(tmp_path / "whole", mine)
    write, read = os.pwritev, os.preadv
    monkeypatch.setattr("os.pwritev", lambda fd, bufs, at: write(fd, [bufs[0][:7]], at))
    segment, places = written(tmp_path / "s", mine)
    assert (tmp_path / "s").read_bytes() == (tmp_path / "whole").read_bytes()
    monkeypatch.setattr("os.preadv", lambda fd, bufs, at, flags=0: few(read, fd, bufs, at))
    one, other = bytearray(100), bytearray(200)
    segment.read(places[1], [memoryview(one), memoryview(other)])
    raw = (tmp_path / "s").read_bytes()[places[1] : places[1] + 300]
    assert bytes(one + other) == raw


def few(read: object, fd: int, buffers: list[memoryview], at: int) -> int:
    """A preadv that gives up after eleven bytes."""
    first = next(b for b in buffers if len(b))
    assert callable(read)
    got: int = read(fd, [first[:11]], at)
    return got


def test_full_disk_leaves_the_file_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When a batch fits half, nothing of it stays, and the next one goes where it would have."""
    mine = blocks(chain(range(30)))
    segment, _ = written(tmp_path / "s", mine)
    before = (tmp_path / "s").read_bytes()
    write = os.pwritev
    calls = iter([1])

    def full(fd: int, buffers: list[memoryview], at: int) -> int:
        if next(calls, None):
            return write(fd, buffers[:2], at)
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr("os.pwritev", full)
        with pytest.raises(OSError, match="No space"):
            segment.append([(encode_head(b), b.payload) for b in mine])
    assert (tmp_path / "s").read_bytes() == before
    assert segment.append([(b"x" * 64, b"y")]) == [len(before)]


def test_too_short(tmp_path: Path) -> None:
    """A read past the end of the file is damage, whether it may wait or not."""
    segment, places = written(tmp_path / "s", blocks(chain(range(8))))
    os.truncate(tmp_path / "s", places[-1] + 10)
    with pytest.raises(RecordDamaged):
        segment.read(places[-1], [memoryview(bytearray(100))])
    assert not segment.read(places[-1], [memoryview(bytearray(100))], wait=False)


def test_wiped_bytes_are_zeros(tmp_path: Path) -> None:
    """A wiped record is zeros from its head to its padding; its neighbours are as they were."""
    mine = blocks(chain(range(30)))
    segment, places = written(tmp_path / "s", mine)
    before = (tmp_path / "s").read_bytes()
    segment.wipe([extent(mine[n], places[n]) for n in (2, 1, 5)])
    after = (tmp_path / "s").read_bytes()
    assert len(after) == len(before)
    for n, (block, place) in enumerate(zip(mine, places, strict=True)):
        at, size = extent(block, place)
        expected = bytes(size) if n in (1, 2, 5) else before[at : at + size]
        assert after[at : at + size] == expected
    assert [at for at, _ in segment.scan()] == [
        p for n, p in enumerate(places) if n not in (1, 2, 5)
    ]


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_scan_finds_every_whole_head(tmp_path: Path, data: st.DataObject) -> None:
    """Whatever is scribbled over a segment, exactly the records with a whole head are found."""
    mine = blocks(chain(range(40)))
    (tmp_path / "s").unlink(missing_ok=True)
    segment, places = written(tmp_path / "s", mine)
    raw = bytearray((tmp_path / "s").read_bytes())
    harmed: set[int] = set()
    for _ in range(data.draw(st.integers(0, 4))):
        victim = data.draw(st.integers(0, len(mine) - 1))
        size = len(encode_head(mine[victim]))
        at = places[victim] + data.draw(st.integers(0, size - 1))
        raw[at] ^= data.draw(st.integers(1, 255))
        harmed.add(victim)
        again = raw[places[victim] : places[victim] + size] == encode_head(mine[victim])
        harmed -= {victim} if again else set()
    (tmp_path / "s").write_bytes(raw)
    found = {place: head.key for place, head in segment.scan()}
    assert found == {places[n]: b.key for n, b in enumerate(mine) if n not in harmed}


def test_leftovers(tmp_path: Path) -> None:
    """What lies beside known records is found, unless it is zeros."""
    mine = blocks(chain(range(30)))
    segment, places = written(tmp_path / "s", mine)
    known = [extent(b, p) for b, p in zip(mine, places, strict=True)]
    assert segment.leftovers(known) == []
    assert segment.leftovers(known[:3] + known[4:]) == [known[3]]
    segment.wipe([known[3]])
    assert segment.leftovers(known[:3] + known[4:]) == []
    assert sum(size for _, size in segment.leftovers([])) >= sum(size for _, size in known) - 4096


def test_a_reader_outlives_the_file(tmp_path: Path) -> None:
    """Who still has the segment reads on when its file is deleted, and the last one closes it."""
    mine = blocks(chain(range(8)))
    segment, places = written(tmp_path / "s", mine)
    before = len(os.listdir("/proc/self/fd"))
    (tmp_path / "s").unlink()
    payload = bytearray(len(mine[0].payload))
    head = bytearray(len(encode_head(mine[0])))
    assert segment.read(places[0], [memoryview(head), memoryview(payload)])
    assert bytes(payload) == mine[0].payload
    del segment
    assert len(os.listdir("/proc/self/fd")) == before - 1
