"""Prompts: their order, their budget, and the prefix that the cache lives on."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.api import Message, Role, SampledTokens, Sampling, Turn
from personas.conversation import ChatMessage, Conversation
from personas.library import Library
from personas.persona import Persona, PromptTooLong
from personas.prompt import Budget, greetings, prompt_texts, render

ADA = Persona(
    id="ada",
    revision="r",
    name="Ada Lang",
    nickname="Ada",
    description="{{char}} builds clocks.",
    personality="patient",
    scenario="{{user}} visits.",
    greeting="Hello, {{user}}.",
    alternate_greetings=("", "{{pick:Hi,Hey}}."),
    examples=(
        "<START>\n{{user}}: Late?\n{{char}}: Never.\nNot once.\n"
        "<start>\nAda: I am <BOT>.\nBo: I see."
    ),
)
SHIPPED = Library.shipped().list()
START = Conversation("c1", "ada", "r", "Bo")
U, A = Role.USER, Role.ASSISTANT


def say(chat: Conversation, role: Role, text: str, sampled: tuple[int, ...] = ()) -> Conversation:
    return chat.say(
        ChatMessage(
            id=f"m{len(chat.messages)}",
            parent=chat.head,
            role=role,
            name=chat.user if role is U else "Ada",
            text=text,
            sampled=SampledTokens("t", sampled) if sampled else None,
        )
    )


def prompt(persona: Persona, chat: Conversation, context: int = 100_000, reply: int = 50) -> Turn:
    """Renders with a cost of one token a word and four a message."""
    costs = {text: 4 + len(text.split()) for text in prompt_texts(persona, chat)}
    return render(
        persona,
        chat,
        turn_id="t1",
        tenant="me",
        sampling=Sampling(seed=1),
        budget=Budget(context, reply, costs),
    )


def cost(turn: Turn) -> int:
    return sum(4 + len(message.text.split()) for message in turn.messages)


def test_order() -> None:
    """Scene, examples, conversation; names and ids with them."""
    chat = say(say(START, A, "Hello, Bo."), U, "{{char}}?")
    turn = prompt(ADA, chat)
    scene, *rest = turn.messages
    assert scene.role is Role.SYSTEM
    assert scene.text.endswith(
        "\n\nAda builds clocks.\n\nAda's personality: patient\n\nThe scene: Bo visits."
    )
    assert rest == [
        Message(U, "Late?", "Bo"),
        Message(A, "Never.\nNot once.", "Ada"),
        Message(A, "I am Ada.", "Ada"),
        Message(U, "I see.", "Bo"),
        Message(Role.SYSTEM, "A new conversation begins."),
        Message(A, "Hello, Bo.", "Ada"),
        Message(U, "{{char}}?", "Bo"),
    ]
    assert (turn.id, turn.tenant, turn.conversation, turn.speaker) == ("t1", "me", "c1", "Ada")
    assert turn.sampling == Sampling(seed=1)
    assert turn.stable == len(turn.messages)
    assert turn.sampled == ()


def test_system_prompt() -> None:
    """A card's system prompt replaces ours, or holds it where it says so."""
    chat = say(START, U, "Hi")
    ours = prompt(ADA, chat).messages[0].text.split("\n\n")[0]
    assert ours.startswith("This is a conversation between Bo and Ada.")
    for written, expected in (
        ("Be brief, {{char}}.", "Be brief, Ada."),
        ("{{original}} Be brief.", f"{ours} Be brief."),
        (" ", ours),
        ("{{// nothing }}", ours),
    ):
        persona = replace(ADA, system_prompt=written)
        assert prompt(persona, chat).messages[0].text.split("\n\n")[0] == expected


def test_supplement() -> None:
    """A client's system prompt takes the place of {{original}}, else follows ours; as it is."""
    chat = say(START, U, "Hi")
    ours = prompt(ADA, chat).messages[0].text.split("\n\n")[0]
    client = "Speak in rhymes, {{char}}."
    for written, expected in (
        ("", [ours, client]),
        ("Be brief, {{char}}.", ["Be brief, Ada.", client]),
        ("{{ Original }} Be brief.", [f"{client} Be brief."]),
    ):
        persona = replace(ADA, system_prompt=written)
        texts = prompt_texts(persona, chat, client)
        turn = render(
            persona,
            chat,
            turn_id="t1",
            tenant="me",
            sampling=Sampling(),
            budget=Budget(1000, 50, dict.fromkeys(texts, 1)),
            supplement=client,
        )
        assert turn.messages[0].text.split("\n\n")[: len(expected)] == expected
        assert turn.messages[0].text.endswith("The scene: Bo visits.")


def test_post_history_instructions() -> None:
    """Post-history instructions come last and are not stable."""
    persona = replace(ADA, post_history_instructions="Stay calm, {{char}}. {{original}}")
    turn = prompt(persona, say(START, U, "Hi"))
    assert turn.messages[-1] == Message(Role.SYSTEM, "Stay calm, Ada.")
    assert turn.stable == len(turn.messages) - 1


def test_creator_notes() -> None:
    """Creator's notes and tags never enter a prompt."""
    persona = replace(ADA, creator_notes="SECRET", tags=("SECRET",), creator="SECRET")
    assert "SECRET" not in str(prompt(persona, say(START, U, "Hi")).messages)


def test_sampled() -> None:
    """The ids of replies travel at the place of their message."""
    chat = say(say(say(START, U, "Hi"), A, "Ho", (7, 8)), U, "Hi")
    turn = prompt(ADA, chat)
    found = [(m.text, ids.ids) for m, ids in zip(turn.messages, turn.sampled, strict=True) if ids]
    assert found == [("Ho", (7, 8))]


def test_failed_reply() -> None:
    """A reply without text is left out; two messages of the user in a row are none the worse."""
    chat = say(say(say(START, U, "One"), A, ""), U, "Two")
    assert [m.text for m in prompt(ADA, chat).messages[-2:]] == ["One", "Two"]


def test_branches() -> None:
    """Only the line to the head is in the prompt."""
    chat = say(say(START, U, "One"), A, "First")
    chat = say(chat.rewind("m0"), A, "Second")
    assert [m.text for m in prompt(ADA, chat).messages[-2:]] == ["One", "Second"]


def test_narrated_examples() -> None:
    """Example text before the first speaker is narration; a card without examples has none."""
    persona = replace(ADA, examples="It rains.\n{{char}}: Yes.")
    texts = [m.text for m in prompt(persona, START).messages[1:]]
    assert texts == ["It rains.", "Yes.", "A new conversation begins."]
    assert len(prompt(replace(ADA, examples="\n<START>\n"), START).messages) == 1


def test_greetings() -> None:
    """Greetings have their macros expanded, frozen by the conversation; empty ones are left out."""
    first, second = greetings(ADA, user="Bo", conversation_id="c1")
    assert first == "Hello, Bo."
    assert second in ("Hi.", "Hey.")
    assert greetings(ADA, user="Bo", conversation_id="c1") == (first, second)


def test_no_name() -> None:
    """A user without a name is called You."""
    turn = prompt(ADA, say(replace(START, user=" "), U, "Hi"))
    assert "between You and Ada" in turn.messages[0].text


def test_unknown_cost() -> None:
    """A text without a cost is the caller's mistake."""
    with pytest.raises(KeyError):
        render(
            ADA,
            START,
            turn_id="t",
            tenant="t",
            sampling=Sampling(),
            budget=Budget(1000, 10, {}),
        )


def test_too_long() -> None:
    """When scene and last message do not fit, the error says by how much."""
    chat = say(START, U, "word " * 200)
    with pytest.raises(PromptTooLong) as refused:
        prompt(ADA, chat, context=250, reply=50)
    assert refused.value.room == 200
    assert refused.value.needed == cost(prompt(replace(ADA, examples=""), chat))


def test_examples_go_first() -> None:
    """Over budget, the examples go as a whole and the history stays."""
    chat = say(say(say(START, U, "One"), A, "Two"), U, "Three")
    whole = cost(prompt(ADA, chat))
    assert prompt(ADA, chat, context=whole + 50).messages[1].text == "Late?"
    less = prompt(ADA, chat, context=whole + 49)
    assert [m.text for m in less.messages[1:]] == ["One", "Two", "Three"]


def test_large_steps() -> None:
    """History is cut to well below its room, so that the next cut is many turns away."""
    chat, firsts = START, []
    for turn in range(120):
        chat = say(say(chat, U, f"user {turn}"), A, f"reply {turn}")
        chat_now = say(chat, U, f"now {turn}")
        firsts.append(prompt(ADA, chat_now, context=500, reply=50).messages[1].text)
    cuts = sum(a != b for a, b in pairwise(firsts))
    assert 3 <= cuts <= 8


def test_last_message_stays() -> None:
    """A last message that fills the room alone is kept alone."""
    chat = say(say(START, U, "short"), U, "word " * 150)
    whole = cost(prompt(replace(ADA, examples=""), chat))
    turn = prompt(ADA, chat, context=whole + 49, reply=50)
    assert [m.role for m in turn.messages] == [Role.SYSTEM, U]


def simulate(persona: Persona, user: list[str], replies: list[str], context: int) -> list[Turn]:
    """The prompts of a chat in which every other thing can happen: no reply, an odd text."""
    chat = Conversation("sim", persona.id, persona.revision, "Robin")
    for greeting in greetings(persona, user="Robin", conversation_id="sim")[:1]:
        chat = say(chat, A, greeting)
    turns = []
    for said, reply in zip(user, replies, strict=True):
        chat = say(chat, U, said)
        turns.append(prompt(persona, chat, context=context))
        chat = say(chat, A, reply)
    return turns


def breaks(turns: list[Turn], replies: list[str]) -> int:
    """How often prompt n and reply n are no prefix of prompt n + 1."""
    broken = 0
    for before, reply, after in zip(turns, replies, turns[1:], strict=False):
        expected = [(m.role, m.text) for m in before.messages[: before.stable]]
        if reply.strip():
            expected.append((A, reply))
        found = [(m.role, m.text) for m in after.messages[: len(expected)]]
        broken += found != expected
    return broken


texts = st.lists(st.sampled_from(["", "one", "{{char}}: hm\n<START>", "a b c " * 12]), min_size=60)


@pytest.mark.parametrize("persona", SHIPPED, ids=lambda persona: persona.id)
@settings(max_examples=8, deadline=None)
@given(data=st.data(), phi=st.booleans())
def test_stable_prefix(persona: Persona, data: st.DataObject, phi: bool) -> None:
    """Prompt n and reply n are a prefix of prompt n + 1, through 60 turns of anything."""
    persona = replace(persona, post_history_instructions="Go on." if phi else "")
    replies = data.draw(texts)[:60]
    user = [text or "Hm." for text in data.draw(texts)[:60]]
    turns = simulate(persona, user, replies, context=1_000_000)
    assert breaks(turns, replies) == 0
    assert all(len(turn.messages) - turn.stable == phi for turn in turns)


@pytest.mark.parametrize("persona", SHIPPED, ids=lambda persona: persona.id)
@settings(max_examples=8, deadline=None)
@given(data=st.data(), context=st.integers(900, 2500))
def test_few_trims(persona: Persona, data: st.DataObject, context: int) -> None:
    """In a small context every prompt fits, and few of 60 turns break the prefix."""
    replies = data.draw(texts)[:60]
    user = [text or "Hm." for text in data.draw(texts)[:60]]
    turns = simulate(persona, user, replies, context)
    assert all(cost(turn) <= context - 50 for turn in turns)
    total = sum(4 + len(text.split()) for text in (*user, *replies))
    assert breaks(turns, replies) <= 2 + total / (0.4 * (context - 50 - 400) - 100)
    for said, turn in zip(user, turns, strict=True):
        assert turn.messages[0].role is Role.SYSTEM
        assert turn.messages[-1].text == said
