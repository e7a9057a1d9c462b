"""Activation: every gate, recursion and its cycles, chance, groups, time; always the same."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from personas.lorebook import Cause, Lore, Turnout
from personas.lorebook_watch import Watch
from personas.persona import KeyLogic, Lorebook, LoreEntry, Place


def entry(id: str, *keys: str, content: str = "text", **knobs: object) -> LoreEntry:
    return replace(LoreEntry(id=id, keys=keys, content=content), **knobs)  # type: ignore[arg-type]


def watch(*entries: LoreEntry, recursive: bool = False, seed: str = "c1", **more: object) -> Watch:
    book = Lorebook(entries=entries, recursive=recursive)
    return Watch(Lore([book]), seed=seed, **more)  # type: ignore[arg-type]


def turn(at: Watch, *texts: str) -> Turnout:
    """The turn after more messages; those that begin with `:` are replies."""
    for text in texts:
        at.hear(text, reply=text.startswith(":"))
    return at.turn()


def ids(turnout: Turnout) -> list[str]:
    return [active.entry.id for active in turnout.active]


def why(turnout: Turnout) -> dict[str, str]:
    return {rejected.entry.id: rejected.why for rejected in turnout.rejected}


def test_key() -> None:
    """A key in a message brings its entry in, and the trace says which and where."""
    at = watch(entry("a", "moon", "lamp"), entry("b", "sea"))
    (active,) = turn(at, "hello", "the LAMP is lit").active
    assert (active.entry.id, active.cause, active.key, active.source) == (
        "a",
        Cause.KEY,
        "lamp",
        1,
    )


def test_scan_depth() -> None:
    """A key counts in the last messages only: the book's number of them, or the entry's."""
    at = watch(
        entry("a", "lamp"), entry("b", "lamp", scan_depth=2), entry("c", "lamp", scan_depth=0)
    )
    assert ids(turn(at, "lamp")) == ["a", "b"]
    assert ids(turn(at, "x")) == ["a", "b"]
    assert ids(turn(at, "x")) == ["a"]
    assert ids(turn(at, "x")) == ["a"]
    assert ids(turn(at, "x")) == []


@pytest.mark.parametrize(
    ("logic", "texts"),
    [
        (KeyLogic.AND_ANY, ["lamp red", "lamp red blue"]),
        (KeyLogic.AND_ALL, ["lamp red blue"]),
        (KeyLogic.NOT_ANY, ["lamp"]),
        (KeyLogic.NOT_ALL, ["lamp", "lamp red"]),
    ],
)
def test_logics(logic: KeyLogic, texts: list[str]) -> None:
    """Secondary keys gate a match by each of the four logics."""
    found = []
    for text in ("lamp", "lamp red", "lamp red blue", "red blue"):
        gated = entry("a", "lamp", secondary_keys=("red", "blue"), logic=logic)
        turnout = turn(watch(gated), text)
        if turnout.active:
            found.append(text)
        elif "lamp" in text:
            assert "secondary" in why(turnout)["a"]
    assert found == texts


def test_constant_and_disabled() -> None:
    """Constants come without a key, also those that are not permanent; disabled ones never."""
    at = watch(
        entry("a", constant=True, sticky=1, delay=2),
        entry("b", "x", enabled=False, forced=True),
        entry("c", "x", content="  "),
    )
    assert ids(turn(at, "x")) == []
    assert ids(turn(at, "x")) == ["a"]


def test_forced_and_barred() -> None:
    """@@activate comes in whatever else is said, @@dont_activate never."""
    at = watch(
        entry("a", "x", barred=True),
        entry("b", "never", barred=True, forced=True, probability=0, groups=("g",)),
    )
    assert [a.entry.id for a in at._lore.permanent] == ["b"]
    assert ids(turn(at, "x")) == []


def test_additional_and_excluded_keys() -> None:
    """One of the additional keys must be there, none of the excluded ones."""
    gated = entry("a", "lamp", additional_keys=("oil", "wick"), exclude_keys=("storm",))
    for text, comes in (("lamp", False), ("lamp wick", True), ("lamp oil storm", False)):
        assert bool(ids(turn(watch(gated), text))) is comes


def test_recursion() -> None:
    """Entries bring in others by their text, in steps, each once; cycles end."""
    entries = (
        entry("a", "start", content="see b1 and b2"),
        entry("b", "b1", content="back to start, and c1"),
        entry("c", "c1", content="start b1 c1"),
        entry("self", "self", content="self self"),
    )
    at = watch(*entries, recursive=True)
    turnout = turn(at, "start self")
    assert [(a.entry.id, a.step) for a in turnout.active] == [
        ("a", 0),
        ("b", 1),
        ("c", 2),
        ("self", 0),
    ]
    assert [a.source for a in turnout.active if a.cause is Cause.RECURSION] == ["a", "b"]
    assert ids(turn(watch(*entries), "start")) == ["a"]


def test_recursion_exclusions() -> None:
    """Excluded entries are not brought in, preventing ones bring none, delayed ones wait."""
    at = watch(
        entry("a", "start", content="b1 c1 d1"),
        entry("b", "b1", exclude_recursion=True),
        entry("c", "c1", prevent_recursion=True, content="e1"),
        entry("d", "d1", delay_recursion=2),
        entry("e", "e1"),
        entry("f", "start", delay_recursion=1),
        recursive=True,
    )
    turnout = turn(at, "start")
    assert {a.entry.id: a.step for a in turnout.active} == {"a": 0, "c": 1, "d": 2, "f": 1}
    assert ids(turn(watch(entry("g", "x", delay_recursion=1), recursive=True), "x")) == []


def test_permanent_entries_recurse() -> None:
    """A permanent entry is no part of a turn, and its text brings others in all the same."""
    at = watch(entry("p", constant=True, content="the key"), entry("a", "key"), recursive=True)
    assert ids(turn(at, "x")) == ["a"]


def test_recall() -> None:
    """What others are looked for in is what the caller says an entry's text is."""
    at = watch(entry("a", "x"), entry("b", "hidden"), recursive=True, recall=lambda e: "hidden")
    assert ids(turn(at, "x")) == ["a", "b"]


def test_probability() -> None:
    """Chance is drawn for each chat and length, and never again for the same."""
    chancy = entry("a", "x", probability=50)
    came = [bool(ids(turn(watch(chancy, seed=f"c{n}"), "x"))) for n in range(200)]
    assert 60 < sum(came) < 140
    assert came == [bool(ids(turn(watch(chancy, seed=f"c{n}"), "x"))) for n in range(200)]
    assert "50 %" in next(
        why(turnout)["a"]
        for n in range(99)
        if not (turnout := turn(watch(chancy, seed=f"c{n}"), "x")).active
    )


def test_groups() -> None:
    """A group sends one: by weight, by override, by score, or who stays from before."""
    two = [entry("a", "x", groups=("g",)), entry("b", "x", groups=("g",), group_weight=300)]
    came = [ids(turn(watch(*two, seed=f"c{n}"), "x")) for n in range(100)]
    assert all(len(one) == 1 for one in came)
    assert 55 < came.count(["b"]) < 95
    override = [two[0], replace(two[1], group_override=True, order=1)]
    assert ids(turn(watch(*override), "x")) == ["b"]
    scored = [
        entry("a", "x", groups=("g",), group_scoring=True),
        entry("b", "x", "y", groups=("g",)),
    ]
    for n in range(9):
        assert ids(turn(watch(*scored, seed=f"c{n}"), "x y")) == ["b"]
    sticky = [entry("a", "x", groups=("g",), sticky=9), entry("b", "y", groups=("g",))]
    at = watch(*sticky)
    assert ids(turn(at, "x")) == ["a"]
    turnout = turn(at, "y")
    assert ids(turnout) == ["a"]
    assert why(turnout) == {"b": "a stands for the group 'g'"}


def test_forced_in_a_group() -> None:
    """What comes in in any case needs no place in a group, and takes none."""
    forced = entry("a", forced=True, groups=("g",), place=Place.DEPTH)
    assert ids(turn(watch(forced, entry("b", "x", groups=("g",))), "x")) == ["a", "b"]


def test_group_across_steps() -> None:
    """Who comes later by recursion finds the group taken."""
    at = watch(
        entry("a", "x", content="y", groups=("g",)), entry("b", "y", groups=("g",)), recursive=True
    )
    assert ids(turn(at, "x")) == ["a"]


def test_sticky_cooldown_delay() -> None:
    """Sticky, then cooldown, each counted in messages; delay waits for a length."""
    at = watch(entry("a", "x", sticky=2, cooldown=3, scan_depth=1), entry("d", "x", delay=4))
    causes = []
    for text in ("x", "-", "x", "x", "x", "x"):
        turnout = turn(at, text)
        causes.append({a.entry.id: a.cause for a in turnout.active}.get("a"))
    assert causes == [Cause.KEY, Cause.STICKY, None, None, None, Cause.KEY]
    assert ids(turn(watch(entry("d", "x", delay=4)), "x", "x", "x")) == []
    assert ids(turn(watch(entry("d", "x", delay=4)), "x", "x", "x", "x")) == ["d"]


def test_counted_replies() -> None:
    """After so many replies, and at every so many of them."""
    after, every = entry("a", "x", after_replies=2), entry("b", "x", every_replies=2)
    at = watch(after, every)
    assert [ids(turn(at, ":r", "x")) for _ in range(4)] == [[], ["a", "b"], ["a"], ["a", "b"]]


def test_once_and_keep() -> None:
    """Once: not after its first match. Keep: always from then on."""
    at = watch(entry("a", "x", once=True, scan_depth=1), entry("b", "x", keep=True, scan_depth=1))
    assert [ids(turn(at, text)) for text in ("-", "x", "-", "x")] == [[], ["a", "b"], ["b"], ["b"]]


def test_greeting() -> None:
    """An entry of one greeting comes only to chats that began with it."""
    bound = entry("a", "x", greeting=1)
    assert ids(turn(watch(bound, greeting=1), "x")) == ["a"]
    assert ids(turn(watch(bound, greeting=0), "x")) == []
    assert ids(turn(watch(bound), "x")) == []


def test_fields() -> None:
    """An entry may be brought in by a field of the persona it names."""
    fields = {"scenario": "a lamp", "description": "oil"}
    at = watch(entry("a", "lamp", sources=("scenario",)), entry("b", "oil"), fields=fields)
    (active,) = turn(at, "-").active
    assert (active.entry.id, active.cause, active.source) == ("a", Cause.SOURCE, "scenario")


def test_order() -> None:
    """Lower orders come first, whatever brought them in."""
    at = watch(entry("a", "x", order=5), entry("b", "x", order=-1), entry("c", "x", order=5))
    assert ids(turn(at, "x")) == ["b", "a", "c"]


words = st.sampled_from(["red", "blue", "lamp", "sea", "none"])


@st.composite
def entries(draw: st.DrawFn) -> tuple[LoreEntry, ...]:
    made = []
    for number in range(draw(st.integers(1, 6))):
        knobs = draw(
            st.fixed_dictionaries(
                {},
                optional={
                    "constant": st.booleans(),
                    "sticky": st.integers(0, 3),
                    "cooldown": st.integers(0, 3),
                    "probability": st.sampled_from([0.0, 50.0, 100.0]),
                    "groups": st.just(("g",)),
                    "delay_recursion": st.integers(0, 3),
                    "exclude_recursion": st.booleans(),
                    "prevent_recursion": st.booleans(),
                    "once": st.booleans(),
                    "keep": st.booleans(),
                },
            )
        )
        content = " ".join(draw(st.lists(words, min_size=1, max_size=4)))
        made.append(
            entry(f"e{number}", *draw(st.lists(words, max_size=2)), content=content, **knobs)
        )
    return tuple(made)


@settings(max_examples=60, deadline=None)
@given(entries(), st.lists(words, min_size=1, max_size=12))
def test_replay(made: tuple[LoreEntry, ...], said: list[str]) -> None:
    """Any book and chat ends, gives each entry at most once, and the same when replayed."""
    runs = []
    for _ in range(2):
        at = watch(*made, recursive=True)
        runs.append([turn(at, text) for text in said])
    assert runs[0] == runs[1]
    for turnout in runs[0]:
        assert len(set(ids(turnout))) == len(turnout.active)
        assert not set(ids(turnout)) & why(turnout).keys()


def test_many_entries() -> None:
    """Four thousand entries over a turn take milliseconds."""
    at = watch(*(entry(f"e{n}", f"thing {n}", f"stuff {n}") for n in range(4000)))
    took = []
    for number in range(20):
        began = time.perf_counter()
        turn(at, f"a thing {number * 7} and other words " * 10)
        took.append(time.perf_counter() - began)
    assert sorted(took)[10] < 0.05  # a fifth of it on an idle machine; benchmarks hold the target


@pytest.mark.parametrize("key", ["a", "b"])
def test_levels_without_end(key: str) -> None:
    """A book of thousands of levels of recursion, made to stop a server, does not."""
    entries = [entry(f"{n}", "a", content=key, delay_recursion=n) for n in range(5_000)]
    at = watch(*entries, recursive=True)
    began = time.thread_time()
    turn(at, "a")
    assert time.thread_time() - began < 5  # some 50 ms; without an end it was minutes


def test_long_chain() -> None:
    """A chain of entries, each the key of the next, comes in to its end or to a turn's most."""
    for length, came in ((100, 100), (400, 256)):
        chain = [entry(f"{n}", f"<{n}>", content=f"<{n + 1}>") for n in range(length)]
        assert len(turn(watch(*chain, recursive=True), "<0>").active) == came
