"""Page tables in rows say what a table of lists says."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kvstore.tables import PageTables

SLOTS = st.lists(st.integers(0, 999), min_size=1, max_size=40)


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("take"), SLOTS),
            st.tuples(st.just("extend"), SLOTS),
            st.tuples(st.just("drop"), st.integers(1, 40)),
            st.tuples(st.just("give back"), st.just(0)),
        ),
        max_size=60,
    ),
)
def test_as_lists(orders: list[tuple[str, object]]) -> None:
    """Whatever rows are taken, filled, emptied from the front and given back."""
    tables = PageTables([3])
    group = tables.groups[3]
    model: dict[int, tuple[int, list[int]]] = {}
    for at, (order, what) in enumerate(orders):
        rows = sorted(model)
        row = rows[at % len(rows)] if rows else -1
        if order == "take":
            assert isinstance(what, list)
            new = tables.take()
            assert new not in model
            group.set(new, at, what)
            model[new] = at, list(what)
        elif row < 0:
            continue
        elif order == "extend":
            assert isinstance(what, list)
            group.extend(row, what)
            model[row][1].extend(what)
        elif order == "drop":
            assert isinstance(what, int)
            first, slots = model[row]
            count = min(what, len(slots))
            if count:
                assert group.drop(row, count) == slots[:count]
                model[row] = first + count, slots[count:]
        else:
            tables.give_back(row)
            del model[row]
        if model:
            held = sorted(model)
            firsts, slots_of = group.gather(held)
            for index, each in enumerate(sorted(model)):
                assert firsts[index] == model[each][0]
                assert slots_of[index, : len(model[each][1])].tolist() == model[each][1]
                assert group.of(each).tolist() == model[each][1]
