"""Prompts with lore as token ids: each is a prefix of the next one, and none is over its budget."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from backends.api import Role, SampledTokens, Sampling
from backends.local.template import ChatML, GemmaTurns, Transcript
from personas.conversation import ChatMessage, Conversation
from personas.library import Library
from personas.persona import Lorebook, LoreEntry, Note, Place
from personas.prompt import Budget, Plan, Rendered

if TYPE_CHECKING:
    from collections.abc import Callable

    from backends.local.template import Template
    from backends.local.tokenizer import Tokenizer

WORDS = ("lamp", "storm", "cat", "boat", "tea")
CONTENT = "The {} is older\nthan {{{{char}}}}."
ENTRIES = tuple(
    LoreEntry(id=word, keys=(word,), content=CONTENT.format(word), place=place)
    for word, place in zip(WORDS, [*Place][:5], strict=True)
)


@pytest.mark.parametrize(
    ("make", "vocabulary"),
    [
        (Transcript, "gemma_tokenizer"),
        (GemmaTurns, "gemma_tokenizer"),
        (ChatML, "smollm2_tokenizer"),
        (Transcript, "smollm2_tokenizer"),
    ],
)
@pytest.mark.parametrize("greeted", [True, False])
def test_token_prefix(
    make: Callable[[Tokenizer], Template],
    vocabulary: str,
    greeted: bool,
    request: pytest.FixtureRequest,
) -> None:
    """The ids of prompt n and of reply n begin the ids of prompt n + 1, in every template.

    What a prompt really takes is never more than what its trace says.
    """
    tokenizer = request.getfixturevalue(vocabulary)
    template = make(tokenizer)
    persona = replace(
        Library.shipped().get("maren"),
        lore=(Lorebook(entries=ENTRIES),),
        depth_prompt=Note("{{char}} is tired.", 2, Role.USER),
    )
    chat = Conversation("c1", persona.id, persona.revision, "Bo")
    if greeted:
        chat = add(chat, Role.ASSISTANT, "Mind the step.")
    known: tuple[int, ...] = ()
    for number in range(24):
        chat = add(chat, Role.USER, f"{number}: what of the {WORDS[number % 5]}?")
        turn, trace = rendered(template, Plan(persona, chat))
        ids = template.render(turn).ids
        assert trace.breaks == ()
        assert ids[: len(known)] == known
        assert len(ids) <= trace.tokens + 32  # the name of who speaks next is nobody's message
        spoken = tokenizer.encode_text(f" Well, {number} years ago it burnt." * 2)
        known = (*ids, *spoken)
        text = b"".join(map(tokenizer.token_bytes, spoken)).decode()
        chat = add(chat, Role.ASSISTANT, text, SampledTokens(tokenizer.digest, tuple(spoken)))


def rendered(template: Template, plan: Plan) -> Rendered:
    costs = {text: template.cost(text) for text in plan.texts}
    return plan.render(
        turn_id="t", tenant="t", sampling=Sampling(), budget=Budget(100_000, 100, costs)
    )


def add(
    chat: Conversation, role: Role, text: str, sampled: SampledTokens | None = None
) -> Conversation:
    name = "Bo" if role is Role.USER else "Maren"
    return chat.say(ChatMessage(f"m{len(chat.messages)}", chat.head, role, name, text, sampled))
