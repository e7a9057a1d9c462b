"""Books of cards: every knob of V2, V3 and SillyTavern, in whatever type it was written."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.api import Role
from personas.lorebook_reading import ReadLore, read_lore, sound_book
from personas.persona import KeyLogic, LoreEntry, Note, Place
from tests.personas.talks import ADA, chat, prompt, said

if TYPE_CHECKING:
    from personas.persona import JsonValue


def one(item: dict[str, JsonValue]) -> LoreEntry:
    (book,) = read_lore({"character_book": {"entries": [item]}}).books
    (entry,) = book.entries
    return entry


def test_book() -> None:
    """The book's own knobs, also as texts; without a budget of tokens it has none."""
    book: JsonValue = {
        "name": "World",
        "scan_depth": "7",
        "token_budget": "400",
        "recursive_scanning": True,
        "entries": [],
    }
    (read,) = read_lore({"character_book": book}).books
    assert (read.name, read.scan_depth, read.token_budget, read.recursive) == (
        "World",
        7,
        400,
        True,
    )
    (bare,) = read_lore({"character_book": {"entries": {}, "token_budget": 0}}).books
    assert (bare.scan_depth, bare.token_budget, bare.recursive) == (4, None, False)


def test_v3_entry() -> None:
    """An entry of the specification."""
    entry = one(
        {
            "keys": ["a", "b"],
            "secondary_keys": ["c"],
            "selective": True,
            "content": "@@role user\n@@additional_keys d\nText",
            "enabled": True,
            "insertion_order": 3,
            "priority": 9,
            "case_sensitive": True,
            "constant": True,
            "name": "Name",
            "position": "after_char",
        }
    )
    assert entry == LoreEntry(
        id="0.0",
        name="Name",
        content="Text",
        keys=("a", "b"),
        secondary_keys=("c",),
        additional_keys=("d",),
        case_sensitive=True,
        constant=True,
        order=3,
        priority=9,
        place=Place.AFTER_CHAR,
        role=Role.USER,
    )


def test_extensions() -> None:
    """SillyTavern's knobs."""
    entry = one(
        {
            "keys": ["k"],
            "content": "x",
            "extensions": {
                "position": 4,
                "depth": 2,
                "role": 1,
                "selectiveLogic": 3,
                "probability": 30,
                "useProbability": True,
                "group": "g, h",
                "group_override": True,
                "group_weight": 7,
                "use_group_scoring": True,
                "sticky": 1,
                "cooldown": 2,
                "delay": None,
                "exclude_recursion": True,
                "prevent_recursion": True,
                "delay_until_recursion": True,
                "scan_depth": 5,
                "match_whole_words": True,
                "case_sensitive": True,
                "match_scenario": True,
                "ignore_budget": True,
            },
        }
    )
    assert (entry.place, entry.depth, entry.role) == (Place.DEPTH, 2, Role.USER)
    assert (entry.logic, entry.probability) == (KeyLogic.AND_ALL, 30.0)
    assert (entry.groups, entry.group_override, entry.group_weight) == (("g", "h"), True, 7)
    assert entry.group_scoring
    assert (entry.sticky, entry.cooldown, entry.delay) == (1, 2, 0)
    assert (entry.exclude_recursion, entry.prevent_recursion, entry.delay_recursion) == (
        True,
        True,
        1,
    )
    assert (entry.scan_depth, entry.whole_words, entry.case_sensitive) == (5, True, True)
    assert (entry.sources, entry.ignore_budget) == (("scenario",), True)


@pytest.mark.parametrize(
    ("position", "place"),
    [
        ("", Place.BEFORE_CHAR),
        (None, Place.BEFORE_CHAR),
        ([], Place.BEFORE_CHAR),
        (1, Place.AFTER_CHAR),
        ("4", Place.DEPTH),
        ("in_chat", Place.DEPTH),
        (5, Place.EXAMPLES),
        (7, Place.OUTLET),
        (99, Place.BEFORE_CHAR),
    ],
)
def test_position(position: JsonValue, place: Place) -> None:
    """Positions as words, numbers and nonsense."""
    assert one({"keys": ["k"], "content": "x", "position": position}).place is place


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ("a, b,,a", ("a", "b")),
        (["a", 7, None, ""], ("a", "7")),
        ("/a,b/i", ("/a,b/i",)),
        (None, ()),
        (["\ud800x"], ("\ufffdx",)),
    ],
)
def test_keys(keys: JsonValue, expected: tuple[str, ...]) -> None:
    """Keys as a list, as one text, with numbers and damage in them."""
    assert one({"key": keys, "content": "x"}).keys == expected


def test_huge_numbers() -> None:
    """A number that no float can hold is the largest there is."""
    lore = read_lore(
        {"character_book": {"scan_depth": 10**400, "entries": [{"priority": -(10**400)}]}}, ""
    )
    (book,) = lore.books
    assert (book.scan_depth, book.entries[0].priority) == (10**9, -(10**9))


def test_sound_book() -> None:
    """What is written has V3's types, reads as what was read, and loses no other key."""
    entries: JsonValue = {
        "0": {
            "keys": "eel, rope",
            "insertion_order": "20",
            "enabled": "true",
            "position": "in_chat",
        },
        "1": {"key": ["b", 3], "keysecondary": ["c"], "selective": 1, "position": 1, "x": [None]},
        "2": {"keys": ["d"], "content": None, "priority": "4", "constant": None, "position": ""},
    }
    book: dict[str, JsonValue] = {"entries": entries, "scan_depth": "3", "name": None, "y": None}
    made = sound_book(book)
    assert made == {
        "scan_depth": 3,
        "y": None,
        "extensions": {},
        "entries": [
            {
                "keys": ["eel", "rope"],
                "insertion_order": 20,
                "enabled": True,
                "extensions": {"position": 4},
                "use_regex": False,
                "content": "",
            },
            {
                "key": ["b", 3],
                "keys": ["b", "3"],
                "keysecondary": ["c"],
                "secondary_keys": ["c"],
                "selective": True,
                "position": "after_char",
                "x": [None],
                "extensions": {},
                "use_regex": False,
                "content": "",
                "enabled": True,
                "insertion_order": 100,
            },
            {
                "keys": ["d"],
                "content": "",
                "priority": 4,
                "position": "before_char",
                "extensions": {},
                "use_regex": False,
                "enabled": True,
                "insertion_order": 100,
            },
        ],
    }
    assert sound_book(made) == made
    read, again = (read_lore({"character_book": each}, "") for each in (book, made))
    assert read.books == again.books


def test_selective() -> None:
    """Secondary keys count where the entry is selective."""
    item: dict[str, JsonValue] = {"keys": ["k"], "secondary_keys": ["s"], "content": "x"}
    assert one(item).secondary_keys == ()
    assert one({**item, "selective": True}).secondary_keys == ("s",)


def test_null_is_nothing() -> None:
    """A knob that is null is looked for at its other place."""
    more: JsonValue = {"case_sensitive": True, "scan_depth": None}
    entry = one({"keys": ["k"], "case_sensitive": None, "scan_depth": 3, "extensions": more})
    assert entry.case_sensitive
    assert entry.scan_depth == 3


def test_use_regex() -> None:
    """With use_regex, constant, secondary and exclude keys count for nothing (V3)."""
    entry = one(
        {
            "keys": "a,b",
            "use_regex": True,
            "constant": True,
            "secondary_keys": ["c"],
            "content": "@@exclude_keys d\nx",
        }
    )
    assert entry.keys == ("a,b",)
    assert entry.regex
    assert (entry.constant, entry.secondary_keys, entry.exclude_keys) == (False, (), ())


def test_decorators_win() -> None:
    """A decorator counts before the field that says the same."""
    text = "@@depth 0\n@@role assistant\n@@scan_depth 1\n@@is_greeting 0\nx"
    entry = one({"keys": ["k"], "content": text, "extensions": {"depth": 9, "position": 0}})
    assert (entry.place, entry.depth, entry.role) == (Place.DEPTH, 0, Role.ASSISTANT)
    assert (entry.scan_depth, entry.greeting) == (1, 0)


def test_depth_prompt() -> None:
    """The extension depth_prompt is a note; an empty one is none."""
    note: JsonValue = {"prompt": "Be brief.", "depth": "2", "role": "user"}
    assert read_lore({"extensions": {"depth_prompt": note}}).depth_prompt == Note(
        "Be brief.", 2, Role.USER
    )
    assert read_lore({"extensions": {"depth_prompt": {"prompt": " "}}}).depth_prompt is None


def test_more_books() -> None:
    """Additional books of the extensions are read too; ids stay unique."""
    book: JsonValue = {"entries": [{"keys": ["k"], "content": "x"}]}
    data: dict[str, JsonValue] = {
        "character_book": book,
        "extensions": {"additional_lorebooks": [book, "nonsense"]},
    }
    read = read_lore(data, "data.")
    assert [entry.id for book in read.books for entry in book.entries] == ["0.0", "1.0"]
    assert read.preserved == ["data.extensions.additional_lorebooks.1"]


def test_report() -> None:
    """What has no effect is named: patterns, decorators, knobs, entries that are none."""
    items: JsonValue = [
        {"keys": ["/(?=a)/"], "content": "@@instruct_depth 1\nx", "extensions": {"vectorized": 1}},
        "nonsense",
    ]
    assert read_lore({"character_book": {"entries": items}}).preserved == [
        "character_book.entries.0.content.@@instruct_depth",
        "character_book.entries.0.extensions.vectorized",
        "character_book.entries.1",
        "character_book.entries.0.keys.0",
    ]


def test_no_book() -> None:
    """A book that is none is kept and named; null is nothing."""
    assert read_lore({"character_book": None}) == ReadLore()
    assert read_lore({"character_book": [1]}).preserved == ["character_book"]


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-9, 9)
    | st.floats()
    | st.text("a0,-/@{}\n", max_size=6),
    lambda inner: st.lists(inner, max_size=2),
    max_leaves=4,
)
names = st.sampled_from(
    [
        *("keys", "secondary_keys", "content", "enabled", "constant", "use_regex", "position"),
        *("insertion_order", "priority", "selective", "name", "comment", "case_sensitive"),
    ]
)
knobs = st.sampled_from(
    [
        *("depth", "role", "position", "selectiveLogic", "probability", "useProbability", "group"),
        *("sticky", "cooldown", "delay", "scan_depth", "delay_until_recursion", "outlet_name"),
        *("match_scenario", "group_weight", "group_override", "use_group_scoring"),
    ]
)
items = st.builds(
    lambda item, more: {"keys": ["a"], "content": "a {{char}}", **item, "extensions": more},
    st.dictionaries(names, values),
    st.dictionaries(knobs, values),
)


@settings(max_examples=100, deadline=None)
@given(st.lists(items, max_size=4), values, values, values)
def test_any_book(
    entries: list[JsonValue], depth: JsonValue, budget: JsonValue, recursive: JsonValue
) -> None:
    """A book of any values is read as something, and a prompt can be made with it."""
    book: JsonValue = {
        "entries": entries,
        "scan_depth": depth,
        "token_budget": budget,
        "recursive_scanning": recursive,
    }
    lore = read_lore({"character_book": book}).books
    assert len(lore[0].entries) == len(entries)
    rendered = prompt(replace(ADA, lore=lore), chat("a", ":0,", "/a/"), context=400)
    assert "/a/" in said(rendered)
