"""Which records of the disk tier are read in one go."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from kvstore.generation import Generation, Wanted

    Run = tuple[Generation, list[Wanted]]

__all__ = ["RUN_BYTES", "RUN_RECORDS", "runs"]

RUN_BYTES, RUN_RECORDS = 2 << 20, 256
"""How much is read at once: it is looked through again, and then it is still near the core."""


def runs(wanted: Iterable[tuple[Generation, Wanted]]) -> list[Run]:
    """Sorts records into runs that lie one behind the other in their segments.

    A run has at most `RUN_RECORDS`, and at most `RUN_BYTES` unless one record has more.
    """
    made: list[Run] = []
    end, size = (-1, -1), 0
    for generation, one in sorted(wanted, key=lambda w: (w[0].number, w[1][1].place)):
        place, taken = one[1].extent
        size += taken
        if (generation.number, place) != end or size > RUN_BYTES or len(made[-1][1]) >= RUN_RECORDS:
            made.append((generation, []))
            size = taken
        made[-1][1].append(one)
        end = (generation.number, place + taken)
    return made
