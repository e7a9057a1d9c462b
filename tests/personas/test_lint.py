"""personas.lint: every remark has a card that deserves it, and a sound card deserves none."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from personas.card import read_card
from personas.lint import Checked, Level, check

if TYPE_CHECKING:
    from collections.abc import Mapping

SOUND: dict[str, object] = {
    "name": "Ada",
    "description": "{{char}} mends clocks for {{user}}.",
    "first_mes": "Tick?",
    "mes_example": "<START>\n{{user}}: Hi\n{{char}}: Tock.",
    "creator_notes": "A clockmaker.",
    "tags": ["clocks"],
}


def lint(data: Mapping[str, object] = SOUND, context: int = 4096) -> Checked:
    fields = {**SOUND, **data}
    raw = {"spec": "chara_card_v3", "spec_version": "3.0", "data": fields}
    imported = read_card(json.dumps(raw).encode(), id="ada")
    return check(imported.persona, imported.report, lambda text: len(text.split()), context=context)


def codes(found: Checked) -> set[str]:
    return {remark.code for remark in found.remarks}


def book(*entries: Mapping[str, object]) -> dict[str, object]:
    return {"entries": [{"keys": ["river"], "content": "It is deep.", **e} for e in entries]}


def test_sound() -> None:
    """A sound card has no remark, the size of each field, and a prompt that begins permanent."""
    found = lint()
    assert found.remarks == ()
    assert found.clean
    sizes = {size.where: size.tokens for size in found.sizes}
    assert sizes == {"description": 5, "examples": 5, "greeting": 1}
    assert found.permanent == 5
    assert found.prompt[0].stable
    assert "Ada mends clocks for You." in found.prompt[0].message.text
    assert [line.message.text for line in found.prompt[-2:]] == ["Tick?", "Hello."]


@pytest.mark.parametrize(
    ("data", "code", "level"),
    [
        ({"description": "It is {{time}}."}, "clock_in_permanent", Level.WARNING),
        ({"scenario": "{{random:a,b}}"}, "random_in_permanent", Level.WARNING),
        ({"mes_example": "<START>\n{{char}}: {{roll:6}}"}, "random_in_permanent", Level.WARNING),
        ({"post_history_instructions": "Be brief."}, "sent_every_turn", Level.NOTE),
        ({"first_mes": ""}, "no_greeting", Level.WARNING),
        ({"first_mes": "Hi.\n{{user}}: Hi!"}, "speaks_for_user", Level.WARNING),
        ({"alternate_greetings": ["<USER>: Hi!"]}, "speaks_for_user", Level.WARNING),
        ({"description": ""}, "no_description", Level.ERROR),
        ({"mes_example": ""}, "no_examples", Level.NOTE),
        ({"mes_example": "{{char}}: Tock."}, "no_start", Level.NOTE),
        ({"tags": []}, "no_tags", Level.NOTE),
        ({"creator_notes": ""}, "no_notes", Level.NOTE),
        ({"description": "{{calc:1}} clocks"}, "unknown_macro", Level.WARNING),
        ({"description": "{{char} mends"}, "unbalanced_braces", Level.WARNING),
        ({"tags": 7}, "dropped", Level.ERROR),
        ({"personality": None}, "repaired", Level.WARNING),
        ({"mood": "odd"}, "not_executed", Level.NOTE),
        ({"description": "long " * 1100}, "over_budget", Level.WARNING),
        ({"description": "long " * 1600}, "over_budget", Level.ERROR),
        ({"description": "long " * 4000}, "prompt_too_long", Level.ERROR),
        ({"character_book": book({"keys": []})}, "never_comes_in", Level.ERROR),
        ({"character_book": book({"content": " "})}, "empty_entry", Level.WARNING),
        ({"character_book": book({"keys": ["a"]})}, "short_key", Level.WARNING),
        ({"character_book": book({"enabled": False})}, "disabled", Level.NOTE),
        ({"character_book": book({"content": "long " * 300})}, "over_budget", Level.WARNING),
        ({"character_book": book({"content": "{{foo}}"})}, "unknown_macro", Level.WARNING),
        ({"character_book": book({}, {"keys": ["x1x"]})}, "double_entry", Level.WARNING),
        ({"character_book": book({})}, "lore_at_top", Level.NOTE),
        (
            {"character_book": book({"constant": True, "content": "{{time}}"})},
            "volatile_entry",
            Level.WARNING,
        ),
        (
            {"character_book": book({"keys": ["/(?=x)y/"]})},
            "not_executed",
            Level.WARNING,
        ),
    ],
)
def test_remark(data: dict[str, object], code: str, level: Level) -> None:
    """Each fault is named, at its level; only notes leave a card clean."""
    found = lint(data)
    named = [remark for remark in found.remarks if (remark.code, remark.level) == (code, level)]
    assert named
    assert all(remark.where and remark.message for remark in named)
    assert found.clean == all(remark.level is Level.NOTE for remark in found.remarks)


@pytest.mark.parametrize(
    "text",
    [
        "{{char}} and {{User}} {{// a comment}} {{original}} {{hidden_key:x}}",
        "{{if description}}a{{else}}b{{/if}}",
        "{{comment:why}} <BOT> {{reverse:abc}} {{newline}} {{description}}",
    ],
)
def test_known_macros(text: str) -> None:
    """Macros that are executed are not called unknown."""
    assert "unknown_macro" not in codes(lint({"system_prompt": text}))


def test_worst_first() -> None:
    """Errors come before warnings, warnings before notes; of one kind not thousands."""
    entries = [{"keys": [], "content": str(n)} for n in range(500)]
    found = lint({"tags": [], "first_mes": "", "character_book": book(*entries)})
    levels = [[*Level].index(remark.level) for remark in found.remarks]
    assert levels == sorted(levels)
    assert len(set(levels)) == 3
    assert len(found.remarks) < 100


def test_small_context() -> None:
    """What fits one model does not fit a smaller one, and the sizes say by how much."""
    found = lint({"description": "long " * 60}, context=100)
    [size] = [size for size in found.sizes if size.where == "description"]
    assert (size.tokens, size.most) == (60, 25)
    assert "over_budget" in codes(found)


@settings(max_examples=40, deadline=None)
@given(
    st.fixed_dictionaries(
        {},
        optional={
            key: st.one_of(st.text(alphabet="{}<>:/ charuse\n", max_size=40), st.none())
            for key in (*SOUND, "system_prompt", "post_history_instructions", "scenario")
        },
    )
)
def test_any_card(data: dict[str, object]) -> None:
    """Whatever an author wrote, lint has an answer and each remark says where."""
    assert all(remark.where for remark in lint(data).remarks)
