"""Sixty turns with lore: the prefix that the cache lives on, on every card there is."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from backends.api import Message, Role
from personas.card import read_card
from personas.library import Library
from personas.persona import Lorebook, LoreEntry, Note, Persona, Place
from personas.prompt import Rendered, greetings
from personas.script import _compiled
from tests.personas.talks import chat, entry, prompt, said, say

A, S = Role.ASSISTANT, Role.SYSTEM
SAMPLES = {
    "v1": {
        "name": "Tom",
        "description": "<BOT> is old. {{random:grey,bald}}",
        "personality": "",
        "scenario": "{{time}}, in {{user}}'s house",
        "first_mes": "{{pick:Hm,Well}}.",
        "mes_example": "It rains.\n<START>\n{{user}}: Red?\n{{char}}: Blue.",
    },
    "notes": {
        "spec": "chara_card_v2",
        "spec_version": "2.0",
        "data": {
            "name": "Ida",
            "first_mes": "Yes?",
            "system_prompt": "{{original}} {{setvar::a::1}}",
            "post_history_instructions": "[{{getvar::a}}, {{time}}, {{lastUserMessage}}]",
            "extensions": {"depth_prompt": {"prompt": "Be {{roll:d6}}.", "depth": 4}},
        },
    },
    "decorated": {
        "spec": "chara_card_v3",
        "spec_version": "3.0",
        "data": {
            "name": "Eve",
            "first_mes": "Hello.",
            "character_book": {
                "recursive_scanning": True,
                "token_budget": 120,
                "entries": [
                    {"keys": ["red"], "content": f"@@{line}\nentry of {line}"}
                    for line in (
                        *("activate_only_after 3", "activate_only_every 2", "depth 0", "depth 4"),
                        *("keep_activate_after_match", "dont_activate_after_match", "activate"),
                        *("role user", "role assistant", "scan_depth 1", "is_greeting 0"),
                        *("additional_keys blue", "exclude_keys blue", "position scenario"),
                        *("ignore_on_max_context", "dont_activate", "unheard\n@@@depth 1"),
                    )
                ],
            },
        },
    },
}
CARDS = [
    *Library.shipped().list(),
    *(read_card(json.dumps(card).encode(), id=id).persona for id, card in SAMPLES.items()),
]

WORDS = ("red", "blue", "lamp", "sea", "none")
words = st.sampled_from(WORDS)


@st.composite
def books(draw: st.DrawFn) -> tuple[LoreEntry, ...]:
    made = []
    for number in range(draw(st.integers(1, 6))):
        knobs = draw(
            st.fixed_dictionaries(
                {"place": st.sampled_from(Place), "depth": st.integers(0, 6)},
                optional={
                    "constant": st.booleans(),
                    "sticky": st.integers(0, 5),
                    "cooldown": st.integers(0, 5),
                    "probability": st.sampled_from([0.0, 50.0, 100.0]),
                    "groups": st.just(("g",)),
                    "delay_recursion": st.integers(0, 2),
                    "once": st.booleans(),
                    "spare_on_limit": st.booleans(),
                    "role": st.sampled_from(Role),
                    "order": st.integers(0, 5),
                },
            )
        )
        keys = draw(st.lists(words, max_size=2))
        content = " ".join(draw(st.lists(words, min_size=1, max_size=30))) + f" {number}"
        made.append(entry(f"e{number}", *keys, content=content, **knobs))
    return tuple(made)


def own_keys(persona: Persona) -> list[str]:
    entries = [entry for book in persona.lore for entry in book.entries]
    return [key for entry in entries for key in entry.keys if not key.startswith("/")]


# Shrinking sixty turns takes minutes and explains little.
QUICK = tuple(phase for phase in Phase if phase is not Phase.shrink)


@pytest.mark.parametrize("persona", CARDS, ids=lambda persona: persona.id)
@settings(max_examples=6, deadline=None, phases=QUICK)
@given(
    books(),
    st.sampled_from([1500, 2500, 1_000_000]),
    st.sampled_from([None, 40]),
    st.booleans(),
    st.data(),
)
def test_sixty_turns(
    persona: Persona,
    made: tuple[LoreEntry, ...],
    context: int,
    token_budget: int | None,
    noted: bool,
    data: st.DataObject,
) -> None:
    """Prompt n and reply n are a prefix of prompt n + 1 unless a named rule broke it.

    Through 60 turns with lore firing, trims, failed replies and notes; and a restart in between
    gives the same prompt.
    """
    book = Lorebook(entries=made, recursive=True, token_budget=token_budget)
    note = Note("Be terse.", 3) if noted else None
    persona = replace(
        persona, lore=(*persona.lore, book), depth_prompt=note or persona.depth_prompt
    )
    keys = [*WORDS, *own_keys(persona)]
    lines = data.draw(
        st.lists(st.lists(st.sampled_from(keys), max_size=4), min_size=60, max_size=60)
    )
    silent = data.draw(st.sets(st.integers(0, 59), max_size=5))
    greeting = greetings(persona, user="Bo", conversation_id="c1")[0]
    talk = chat(f":{greeting}")
    before: Rendered | None = None
    for number, line in enumerate(lines):
        talk = say(talk, f"{number} " + " ".join(line * 3))
        now = datetime(2026, 11, 23, number // 4, number % 60, tzinfo=UTC)
        rendered = prompt(persona, talk, context, now)
        turn, trace = rendered.turn, rendered.trace
        assert sum(4 + len(m.text.split()) for m in turn.messages) <= trace.tokens <= context - 50
        assert turn.messages[0].role is S
        assert f"{number} " + " ".join(line * 3) in said(rendered)
        if before is not None and not set(trace.breaks) - {"tail"}:
            cached = before.turn.messages[: before.turn.stable]
            if number - 1 not in silent:
                cached += (Message(A, f"reply {number - 1}", "Ada"),)
            assert turn.messages[: len(cached)] == cached
        if number % 20 == 7:
            _compiled.cache_clear()
            assert prompt(persona, talk, context, now) == rendered
        before = rendered
        if number not in silent:
            talk = say(talk, f":reply {number}")
