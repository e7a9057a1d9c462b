"""Keys: plain ones, whole words, patterns in linear time, thousands at once."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from personas.lorebook_keys import Key, KeyIndex, PatternError, compile_pattern


def finds(key: Key, text: str) -> bool:
    return KeyIndex([key]).find(text) == {0}


@pytest.mark.parametrize(
    ("key", "text", "found"),
    [
        (Key("Lamp"), "the LAMPlight", True),
        (Key("lamp", case_sensitive=True), "the Lamp", False),
        (Key("Lamp", case_sensitive=True), "the Lamp", True),
        (Key("lamp", whole_words=True), "the lamplight", False),
        (Key("lamp", whole_words=True), "lamplight, lamp!", True),
        (Key("old lamp", whole_words=True), "an old lamp", True),
        (Key("灯", whole_words=True), "古い灯台", True),
        (Key("x"), "a fox", True),
        (Key("É"), "café", True),
        (Key("/la(mp|nd)/i"), "the LAND", True),
        (Key("/la(mp|nd)/"), "the LAND", False),
        (Key("/^b.c$/ms"), "a\nb\nc", True),
        (Key(r"/caf\u00e9/"), "café", True),
        (Key(r"/a\/b/"), "a/b", True),
        (Key(r"\bcat\b", regex=True), "a Cat.", True),
        (Key(r"\bcat\b", regex=True, case_sensitive=True), "a Cat.", False),
        (Key("/not a pattern"), "/not a pattern", True),
    ],
)
def test_key(key: Key, text: str, found: bool) -> None:
    """A key of each kind matches what it should."""
    assert finds(key, text) is found


@pytest.mark.parametrize(
    "text", ["/(?=x)/", "/a)|(b/", r"/(a)\1/", "/(/", "/a{9999}/", "/a/q", "/(?<!x)y/"]
)
def test_not_executed(text: str) -> None:
    """A pattern that RE2 cannot run is reported and matches nothing."""
    with pytest.raises(PatternError):
        compile_pattern(Key(text))
    index = KeyIndex([Key("y"), Key(text)])
    assert list(index.broken) == [1]
    assert index.find("xy aa a") == {0}


def test_patterns_together() -> None:
    """Patterns that are looked for together find what each of them finds."""
    texts = [f"/w{n}x+/{'i' if n % 2 else ''}" for n in range(70)] + [r"/\Qw1x/", "/^end$/m"]
    index = KeyIndex([Key(text) for text in texts])
    assert index.broken == {}
    assert index.find("W7X w8x W8X w69xx") == {7, 8, 69}
    assert index.find("w1x\nend") == {1, 70, 71}
    assert index.find("nothing") == frozenset()


def test_linear() -> None:
    """A pattern that takes a backtracking engine for ever takes no time here."""
    index = KeyIndex([Key("/^(a+)+$/"), Key("/(x+x+)+y/")])
    began = time.process_time()
    assert index.find("a" * 50_000 + "!" + "x" * 50_000) == frozenset()
    assert time.process_time() - began < 1


def test_four_thousand() -> None:
    """Four thousand keys cost no more than a look at the text, however alike they are."""
    index = KeyIndex([Key(f"the thing {n:04}") for n in range(4000)])
    text = "the thing 0123 and the thing 3999, " * 40
    began = time.process_time()
    assert index.find(text) == {123, 3999}
    assert time.process_time() - began < 0.1


def test_many_patterns() -> None:
    """Patterns beyond a thousand are not run, and named."""
    index = KeyIndex([Key(f"/w{n}x/") for n in range(1100)])
    assert len(index.broken) == 76
    assert index.find("w1023x w1024x") == {1023}


def test_remembers() -> None:
    """What is remembered of texts is bounded."""
    index = KeyIndex([Key("a")])
    for number in range(5000):
        index.find(f"a {number}")
    assert len(index._remembered) <= 2048


letters = st.text("abcA .é灯", max_size=12)


@settings(max_examples=200, deadline=None)
@given(st.lists(letters.filter(str.strip), min_size=1, max_size=8), letters, st.booleans())
def test_like_a_plain_search(keys: list[str], text: str, exact: bool) -> None:
    """The index finds what looking for each key by itself finds."""
    index = KeyIndex([Key(key, case_sensitive=exact) for key in keys])
    expected = {
        number
        for number, key in enumerate(keys)
        if (key in text if exact else key.lower() in text.lower())
    }
    assert index.find(text) == expected


@pytest.mark.parametrize(
    "pattern", ["x{1,1000}" * 5, r"\pL" * 2700, "(?:a?){900}a{90}", "a" * 9000]
)
def test_costly_patterns(pattern: str) -> None:
    """A book of patterns that are much work is compiled and searched in a bounded time: those that
    come first run, the others are named."""
    began = time.thread_time()
    index = KeyIndex(Key(f"/{pattern}{number}/") for number in range(1000))
    index.find("a" * 1000)
    assert time.thread_time() - began < 10  # less than a second on any machine of these years
    assert len(index.broken) > 900


def test_many_plain_patterns() -> None:
    """A thousand usual patterns are no such work."""
    index = KeyIndex(Key(rf"/\b(?:gate|wall){number}s?\b/i") for number in range(1000))
    assert not index.broken
    assert index.find("The WALL7s and gate999.") == {7, 999}
