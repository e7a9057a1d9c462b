"""personas.starter: the card to begin with is one to be proud of."""

from __future__ import annotations

import pytest

from personas.card import read_card
from personas.lint import check
from personas.persona import Place
from personas.prompt import greetings
from personas.starter import starter


@pytest.mark.parametrize("name", ["Ines", 'O"Neil \\ {{x', "Żółć 🕰", "\ud800"])
def test_starter(name: str) -> None:
    """It reads without repair, lints without a remark, and keeps its hints out of the prompt."""
    imported = read_card(starter(name), id="new")
    persona, report = imported.persona, imported.report
    assert not report.dropped
    assert persona.name
    if "{" in name or "\ud800" in name:
        return
    assert persona.name == name
    assert not report.repaired
    found = check(persona, report, lambda text: len(text) // 4)
    assert found.remarks == ()
    assert "five to eight" not in found.prompt[0].message.text
    assert len(greetings(persona, user="You", conversation_id="c")) == 2
    assert {entry.place for entry in persona.lore[0].entries} == {Place.DEPTH}
