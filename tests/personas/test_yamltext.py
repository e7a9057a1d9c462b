"""YAML of character files."""

from __future__ import annotations

from contextlib import suppress

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from personas.limits import ImportLimits
from personas.persona import CardError, JsonValue
from personas.yamltext import load_yaml


def test_texts_stay_texts() -> None:
    """What YAML would make a number, a date or a truth value stays what was written."""
    text = "name: Yes\ngreeting: 2024-01-01\ncontext: |\n  a: b\n  c\nn: 1\nyour_name:\nt: '~'\n"
    assert load_yaml(text, ImportLimits()) == {
        "name": "Yes",
        "greeting": "2024-01-01",
        "context": "a: b\nc\n",
        "n": "1",
        "your_name": None,
        "t": "~",
    }


def test_nesting() -> None:
    """Lists and mappings inside each other are built as they stand."""
    found = load_yaml("a: [1, {b: c}, []]\nd:\n- e: f\n  g: {}\n", ImportLimits())
    assert found == {"a": ["1", {"b": "c"}, []], "d": [{"e": "f", "g": {}}]}


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("a: &x [1]\nb: *x", "bad_yaml"),
        ("a: *x", "bad_yaml"),
        ("[a]: b", "bad_yaml"),
        ("a: 'b", "bad_yaml"),
        ("a: \x07", "bad_yaml"),
        ("[" * 100, "too_deep"),
        ("a" * 300_000, "too_large"),
    ],
)
def test_refused(text: str, code: str) -> None:
    """Anchors, odd keys, broken and endless YAML are refused by name."""
    with pytest.raises(CardError) as caught:
        load_yaml(text, ImportLimits())
    assert caught.value.code == code


def test_tags_are_ignored() -> None:
    """No tag makes anything but a text."""
    assert load_yaml("a: !!python/name:os.system x", ImportLimits()) == {"a": "x"}


TREES = st.recursive(
    st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc"), inner, max_size=3),
    max_leaves=8,
)


@given(TREES)
def test_any_tree(tree: JsonValue) -> None:
    """What PyYAML writes is what is read."""
    assert load_yaml(yaml.safe_dump(tree, default_style='"'), ImportLimits()) == tree


@given(st.text(max_size=60))
def test_noise(text: str) -> None:
    """Any text is read or refused by name."""
    with suppress(CardError):
        load_yaml(text, ImportLimits())
