"""Other programs' characters: which key is read as which, and that none is lost."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from personas import foreign
from personas.limits import Findings
from personas.persona import CardError

if TYPE_CHECKING:
    from personas.persona import JsonValue


def data(card: dict[str, JsonValue]) -> dict[str, JsonValue]:
    found = card["data"]
    assert isinstance(found, dict)
    return found


def ours(card: dict[str, JsonValue]) -> JsonValue:
    extensions = data(card)["extensions"]
    assert isinstance(extensions, dict)
    return extensions["greenroom"]


def test_pygmalion() -> None:
    """Pygmalion's keys, `You:` and the character's name as speakers, its own macros."""
    findings = Findings()
    card = foreign.from_pygmalion(
        {
            "char_name": "Ada",
            "char_persona": "[name_char] makes clocks for [name_user].",
            "char_greeting": "Tick?",
            "world_scenario": "A shop.",
            "example_dialogue": "You: Hi\nAda: Ho: ho\nBert: Hm",
            "metadata": {"version": 1},
        },
        findings,
    )
    found = data(card)
    assert found["name"] == "Ada"
    assert found["description"] == "{{char}} makes clocks for {{user}}."
    assert found["mes_example"] == "<START>\n{{user}}: Hi\n{{char}}: Ho: ho\nBert: Hm"
    assert ours(card) == {
        "imported_from": "pygmalion",
        "original": {"metadata": {"version": 1}},
    }
    assert {f.where for f in findings.found} >= {"char_name", "char_persona", "mes_example"}


def test_webui_context() -> None:
    """Examples inside text-generation-webui's context are taken out of it."""
    card = foreign.from_webui(
        {"name": "Ada", "context": "Clocks.\n<START>\nYou: Hi", "greeting": "x", "turn": "y"},
        Findings(),
    )
    assert data(card)["description"] == "Clocks."
    assert data(card)["mes_example"] == "<START>\n{{user}}: Hi"
    assert ours(card) == {"imported_from": "text-generation-webui", "original": {"turn": "y"}}


def test_character_ai() -> None:
    """Tagline, description, greeting and the definition's dialogues of Character.AI."""
    card = foreign.from_cai(
        {
            "character": {
                "name": "Ada",
                "title": "Clockmaker",
                "description": "Makes clocks.",
                "greeting": "Tick?",
                "definition": "She is calm.\nAda: Tick\n{{random_user_1}}: a {{random_user_2}}\n"
                "END_OF_DIALOG\n{{user}}: Hi\n{{random_user_1}}: Ho",
                "categories": ["x"],
            },
            "histories": [],
        },
        Findings(),
    )
    found = data(card)
    assert found["description"] == "Makes clocks.\n\nShe is calm."
    assert found["mes_example"] == (
        "<START>\n{{char}}: Tick\n{{user}}: a Guest 2\n<START>\n{{user}}: Hi\nGuest 1: Ho"
    )
    assert ours(card) == {
        "tagline": "Clockmaker",
        "imported_from": "character_ai",
        "original": {"title": "Clockmaker", "categories": ["x"], "histories": []},
    }


def test_conflicting_names() -> None:
    """Of two keys for one field the other's value stays in the original."""
    card = foreign.from_cai(
        {"participant__name": "Old", "name": "Ada", "greeting": "x", "definition": None},
        Findings(),
    )
    assert data(card)["name"] == "Ada"
    assert ours(card) == {
        "imported_from": "character_ai",
        "original": {"participant__name": "Old"},
    }


@pytest.mark.parametrize(
    ("card", "kind"),
    [
        ({"name": "a", "first_mes": "b", "char_name": "c"}, None),
        ({"spec": "chara_card_v2", "data": {}, "char_name": "c"}, None),
        ({"name": "a", "description": "b"}, None),
        ({"bot": "a", "context": "b"}, "text-generation-webui"),
        ({"greeting": "b"}, None),
        ({"char_greeting": "b"}, "pygmalion"),
        ({"name": "a", "definition": "b"}, "character_ai"),
    ],
)
def test_kinds(card: dict[str, JsonValue], kind: str | None) -> None:
    """A character card stays one, whatever else is in it."""
    assert foreign.kind_of(card) == kind


def test_byaf_texts() -> None:
    """A Backyard text that is none is an error; missing parts are empty."""
    empty = data(foreign.from_byaf({}, {"name": "Ada"}, [], Findings()))
    assert (empty["name"], empty["first_mes"], empty["mes_example"]) == ("Ada", "", "")
    with pytest.raises(CardError):
        foreign.from_byaf({}, {"name": 3}, [], Findings())
