"""Records are read in runs."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from hypothesis import given
from hypothesis import strategies as st

from kvstore.api import BlockKey, PrefixKey
from kvstore.generation import Entry
from kvstore.runs import RUN_BYTES, RUN_RECORDS, runs

if TYPE_CHECKING:
    from kvstore.generation import Generation, Wanted


@dataclass(frozen=True)
class _Numbered:
    number: int


def _wanted(number: int, place: int, size: int) -> tuple[Generation, Wanted]:
    key = BlockKey(PrefixKey(b"s" * 16, b"d" * 16, 64, 1), 0, 0)
    generation = cast("Generation", _Numbered(number))
    return generation, (key, Entry(place, 64, size - 64, b""), memoryview(b""))


@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.sampled_from([64, 128, 1 << 20, 3 << 20]), st.booleans()),
        max_size=40,
    ),
)
def test_every_run_is_one_stretch(sizes: list[tuple[int, int, bool]]) -> None:
    """Each record is in one run, and a run is a stretch without a gap of a bounded size."""
    ends = dict.fromkeys(range(3), 0)
    wanted = []
    for number, size, gap in sizes:
        ends[number] += 64 * gap
        wanted.append(_wanted(number, ends[number], size))
        ends[number] += size
    made = runs(reversed(wanted))
    places = [(g.number, one[1].place) for g, run in made for one in run]
    assert sorted(places) == places
    assert len(places) == len(wanted)
    for _, run in made:
        extents = [one[1].extent for one in run]
        assert all(sum(a) == b[0] for a, b in itertools.pairwise(extents))
        assert sum(size for _, size in extents) <= RUN_BYTES or len(run) == 1


def test_a_run_has_few_records() -> None:
    """Small records are read so many at a time as one system call takes."""
    made = runs(_wanted(1, 64 * i, 64) for i in range(RUN_RECORDS + 1))
    assert [len(run) for _, run in made] == [RUN_RECORDS, 1]
