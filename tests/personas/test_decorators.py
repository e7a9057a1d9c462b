"""Decorators: every one of the V3 specification, their fallbacks, and texts that only look so."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.api import Role
from personas.decorators import parse
from personas.persona import Place


@pytest.mark.parametrize(
    ("line", "name", "value"),
    [
        ("@@activate", "activate", True),
        ("@@activate_only_after 3", "activate_only_after", 3),
        ("@@activate_only_every 2", "activate_only_every", 2),
        ("@@additional_keys a, b", "additional_keys", ("a", "b")),
        ("@@depth 0", "depth", 0),
        ("@@disable_ui_prompt system_prompt", "disable_ui_prompt", "system_prompt"),
        ("@@dont_activate", "dont_activate", True),
        ("@@dont_activate_after_match", "dont_activate_after_match", True),
        ("@@exclude_keys a,b c", "exclude_keys", ("a", "b c")),
        ("@@ignore_on_max_context", "ignore_on_max_context", True),
        ("@@is_greeting 1", "is_greeting", 1),
        ("@@keep_activate_after_match true", "keep_activate_after_match", True),
        ("@@position after_desc", "position", Place.AFTER_DESCRIPTION),
        ("@@role assistant", "role", Role.ASSISTANT),
        ("@@Scan_Depth 9", "scan_depth", 9),
    ],
)
def test_each(line: str, name: str, value: object) -> None:
    """Each decorator is read and taken off the text."""
    read = parse(f"{line}\n\nThe text.")
    assert dict(read.found) == {name: value}
    assert read.content == "The text."
    assert read.ignored == ()


@pytest.mark.parametrize(
    "line",
    [
        "@@unheard_of 3",
        "@@depth four",
        "@@depth",
        "@@activate_only_every 0",
        "@@position everywhere",
        "@@role narrator",
        "@@activate false",
        "@@additional_keys ,",
        "@@instruct_depth 3",
        "@@reverse_depth 3",
        "@@instruct_scan_depth 3",
        "@@reverse_instruct_depth 3",
        "@@is_user_icon hat",
    ],
)
def test_ignored(line: str) -> None:
    """Unknown ones, bad values and those that mean nothing in a chat are hidden and named."""
    read = parse(f"{line}\nThe text.")
    assert read.found == {}
    assert read.content == "The text."
    assert read.ignored == (line[2:].split(" ", maxsplit=1)[0],)


def test_fallbacks() -> None:
    """Of a chain the first that is understood counts, however long; others are no fallbacks."""
    chain = "@@x1\n@@@x2\n@@@x3\n@@@x4\n@@@x5\n@@@depth 5\n@@@role user\nText"
    assert dict(parse(chain).found) == {"depth": 5}
    assert dict(parse("@@depth 1\n@@@role user\nText").found) == {"depth": 1}
    assert dict(parse("@@@role user\nText").found) == {}
    assert dict(parse("@@instruct_depth 9\n@@@depth 2\nText").found) == {"depth": 2}


def test_first_counts() -> None:
    """Of two decorators of one name the first counts."""
    assert dict(parse("@@depth 1\n@@depth 2\nText").found) == {"depth": 1}


def test_only_on_top() -> None:
    """Text above ends the decorators; a text without any stays as it is."""
    assert parse("Text\n@@depth 1").content == "Text\n@@depth 1"
    assert parse("  Text\n\n").content == "  Text\n\n"
    assert parse("@@ depth 1\nText").content == "@@ depth 1\nText"
    assert parse("@@depth 1").content == ""


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from(["@@", "@@@", "depth", " 1", "\n", "role user", "x", "é"])))
def test_any_text(parts: list[str]) -> None:
    """Whatever is written, what is left has no decorator on top."""
    left = parse("".join(parts)).content
    assert parse(left).found == {}
    assert parse(left).content == left
