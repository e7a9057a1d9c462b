"""Prompts with lore: where it stands, what it costs, and that it leaves the cache alone."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

from backends.api import Message, Role, Sampling
from personas.library import Library
from personas.lorebook import Cause
from personas.persona import LoreEntry, Note, Place
from personas.prompt import Budget, Plan, greetings
from personas.trace import TraceEntry
from tests.personas.talks import ADA, chat, entry, prompt, said, say, traced, with_lore

U, A = Role.USER, Role.ASSISTANT


def test_stays_where_it_was() -> None:
    """An entry stands before the message that brought it in, and there it stays."""
    persona = with_lore(entry("lamp", "lamp"), entry("sea", "sea", depth=4, role=U))
    one = chat(":Hello.", "A lamp?")
    assert said(prompt(persona, one)) == ["Hello.", "about lamp", "A lamp?"]
    two = say(say(one, ":Yes."), "And the sea, and a lamp?")
    rendered = prompt(persona, two)
    expected = ["Hello.", "about lamp", "A lamp?", "Yes.", "about sea", "And the sea, and a lamp?"]
    assert said(rendered) == expected
    assert rendered.turn.messages[5] == Message(U, "about sea", "Bo")
    assert rendered.turn.stable == len(rendered.turn.messages)
    later = two
    for _ in range(6):
        later = say(say(later, ":Well."), "Go on.")
    assert said(prompt(persona, later))[:6] == expected


def test_names_in_keys() -> None:
    """A key may be a name: {{user}} of this chat, {{char}} of this card."""
    persona = with_lore(entry("a", "friend of {{user}}"), entry("b", "{{char}}"))
    assert said(prompt(persona, chat("A friend of Bo."))) == ["about a", "A friend of Bo."]
    other = chat("A friend of Bo and Ada.", user="Cy")
    assert said(prompt(persona, other)) == ["about b", "A friend of Bo and Ada."]


def test_trace() -> None:
    """The trace has each entry with its cause, key, place and cost, and what was turned away."""
    persona = with_lore(
        entry("lamp", "lamp", name="The lamp"),
        entry("wick", "wick", content="more oil"),
        entry("oil", "oil", content="black gold"),
        entry("not", "lamp", cooldown=9, probability=0),
        entry("always", constant=True),
        recursive=True,
    )
    rendered = prompt(persona, say(say(chat("A lamp."), ":Yes."), "The wick?"))
    trace, found = rendered.trace, traced(rendered)
    assert (trace.conversation, trace.persona, trace.message) == ("c1", "ada@r1", "m2")
    assert found["lamp"] == TraceEntry(
        id="lamp",
        name="The lamp",
        cause="key",
        key="lamp",
        source="m0",
        place="before",
        message="m0",
        tokens=6,
    )
    assert (found["oil"].cause, found["oil"].source, found["oil"].message) == (
        "recursion",
        "wick",
        "m2",
    )
    assert (found["always"].place, found["always"].cause) == ("scene", Cause.CONSTANT)
    assert found["not"].cut == "not drawn at 0 %"
    total = sum(4 + len(m.text.split()) for m in rendered.turn.messages)
    assert trace.tokens == total
    assert trace.lore_tokens == sum(one.tokens for one in trace.entries if one.place)
    far = prompt(persona, say(say(say(say(chat("A lamp."), ":1"), "2"), ":3"), "4"))
    assert traced(far)["lamp"].cause == "earlier"


def test_places_in_the_scene() -> None:
    """Permanent entries stand where their author wants them."""
    persona = with_lore(
        entry("1", constant=True, place=Place.AFTER_CHAR, order=2),
        entry("2", constant=True, place=Place.AFTER_CHAR, order=1),
        entry("3", constant=True),
        entry("4", constant=True, place=Place.AFTER_DESCRIPTION),
        entry("5", constant=True, place=Place.OUTLET, outlet="Shelf"),
        entry("6", constant=True, place=Place.SCENARIO),
        persona=replace(ADA, system_prompt="Speak. {{outlet::shelf}}", personality="kind"),
    )
    scene = prompt(persona, chat("Hi")).turn.messages[0].text
    assert scene.split("\n\n") == [
        "Speak. about 5",
        "about 3",
        "A clockmaker.",
        "about 4",
        "Ada's personality: kind",
        "The scene: Noon.",
        "about 6",
        "about 2",
        "about 1",
    ]


def test_disable_ui_prompt() -> None:
    """A permanent entry can leave our own system prompt out, and never the card's."""
    silent = entry("a", constant=True, disables_system_prompt=True)
    assert prompt(with_lore(silent), chat("Hi")).turn.messages[0].text.startswith("about a")
    bare = LoreEntry(id="a", constant=True, disables_system_prompt=True)
    assert prompt(with_lore(bare), chat("Hi")).turn.messages[0].text.startswith("A clockmaker.")
    own = with_lore(silent, persona=replace(ADA, system_prompt="Mine."))
    assert prompt(own, chat("Hi")).turn.messages[0].text.startswith("Mine.")


def test_depth() -> None:
    """Depth 0 comes after the newest message; a note comes again when it has drifted away."""
    persona = with_lore(entry("last", "lamp", place=Place.DEPTH, depth=0, role=A))
    rendered = prompt(persona, chat("A lamp."))
    assert rendered.turn.messages[-1] == Message(A, "about last", "Ada")
    assert rendered.turn.stable == 3
    noted = replace(ADA, depth_prompt=Note("Be {{char}}.", 2))
    long = chat(*(f":r{n}" if n % 2 else f"u{n}" for n in range(41)))
    rendered = prompt(noted, long)
    assert [e.cause for e in rendered.trace.entries] == ["earlier", "earlier", "constant"]
    texts = said(rendered)
    assert [at for at, text in enumerate(texts) if text == "Be Ada."] == [0, 17, 34]
    assert texts[34:37] == ["Be Ada.", "u32", "r33"]


def test_author_note_and_user() -> None:
    """The author's note is planted like the card's; who the user is stands before the history."""
    talk = chat("Hi", about_user="A baker, friend of {{char}}.", note=Note("It rains.", 1, U))
    rendered = prompt(ADA, talk)
    assert said(rendered) == ["Bo: A baker, friend of Ada.", "It rains.", "Hi"]
    assert [e.id for e in rendered.trace.entries] == ["note"]


def test_tail() -> None:
    """What wants to be last at every turn is the tail, and the trace says that it breaks."""
    persona = with_lore(
        entry("end", constant=True, place=Place.DEPTH, depth=0),
        persona=replace(ADA, post_history_instructions="To {{lastUserMessage}}"),
    )
    rendered = prompt(persona, chat("Hi"))
    assert said(rendered) == ["Hi", "about end", "To Hi"]
    assert rendered.turn.stable == 2
    assert rendered.trace.breaks == ("tail",)
    assert traced(rendered)["end"].place == "tail"


def test_clock() -> None:
    """Clocks stand in the tail alone; the permanent text has words that stay true."""
    now = datetime(2026, 11, 23, 7, 5, tzinfo=UTC)
    persona = replace(ADA, scenario="It is {{time}}.", post_history_instructions="At {{time}}.")
    rendered = prompt(persona, chat("Hi"), now=now)
    assert rendered.turn.messages[0].text.endswith("The scene: It is the present time.")
    assert said(rendered) == ["Hi", "It is Monday, 23 November 2026, 07:05.", "At 07:05."]
    assert said(prompt(persona, chat("Hi"))) == ["Hi", "At the present time."]


def test_variables() -> None:
    """Variables of the permanent text can be read in lore and in the tail."""
    persona = with_lore(
        entry("a", "hi", content="is {{getvar::mood}}{{setvar::mood::bad}}"),
        persona=replace(
            ADA,
            description="{{setvar::mood::good}}A clockmaker.",
            post_history_instructions="{{getvar::mood}}!",
        ),
    )
    assert said(prompt(persona, chat("Hi"))) == ["is good", "Hi", "good!"]


def test_fields_as_macros() -> None:
    """{{description}} and its kin are the expanded fields; creator's notes are nothing."""
    persona = replace(
        ADA,
        description="{{char}}, {{scenario}}",
        scenario="{{description}}",
        creator_notes="SECRET",
        post_history_instructions="{{description}}|{{creatorNotes}}|{{persona}}",
    )
    rendered = prompt(persona, chat("Hi", about_user="a baker"))
    assert said(rendered)[-1] == "Ada, {{scenario}}||a baker"
    assert "SECRET" not in str(rendered.turn.messages)


def test_budget() -> None:
    """Within a book's budget the priority decides; what is cut says so and is not planted."""
    persona = with_lore(
        entry("low", "x", priority=1),
        entry("high", "x", priority=9, content="one two three four five six"),
        entry("small", "x", content="tiny"),
        entry("free", "x", ignore_budget=True),
        token_budget=15,
    )
    rendered = prompt(persona, chat("x"))
    assert said(rendered) == ["one two three four five six", "tiny", "about free", "x"]
    assert traced(rendered)["low"].cut == "6 tokens, and 5 of 15 are left"


def test_budget_of_permanent_entries() -> None:
    """Permanent entries are cut by the same budget, and then cost nothing."""
    persona = with_lore(
        entry("a", constant=True, priority=1),
        entry("b", constant=True),
        entry("c", "x"),
        token_budget=8,
    )
    rendered = prompt(persona, chat("x"))
    scene = rendered.turn.messages[0].text
    assert "about a" in scene
    assert "about b" not in scene
    assert said(rendered) == ["x"]
    assert {e.id for e in rendered.trace.entries if e.cut} == {"b", "c"}


def test_share_of_the_context() -> None:
    """A book without a budget takes a quarter of the room at most."""
    persona = with_lore(*(entry(f"e{n}", "x", content="w " * 20) for n in range(50)))
    rendered = prompt(persona, chat("x"), context=450)
    assert sum(1 for text in said(rendered) if text.startswith("w")) == 4
    assert rendered.trace.lore_tokens == 96


def test_ignore_on_max_context() -> None:
    """Where the context is full, an entry that yields then is cut first."""
    persona = with_lore(entry("a", "now", spare_on_limit=True), entry("b", "now"))
    long = chat(*(f"word {n} " * 10 for n in range(40)), "now")
    assert "about a" in said(prompt(persona, long))
    rendered = prompt(persona, long, context=400)
    assert "about a" not in said(rendered)
    assert "about b" in said(rendered)
    assert traced(rendered)["a"].cut == "the context is full"


def test_replanted_after_a_trim() -> None:
    """Lore that was trimmed away with its messages comes in again when it is asked for."""
    persona = with_lore(entry("a", "lamp"))
    talk = chat("lamp")
    for n in range(30):
        talk = say(say(talk, f":reply {n} " * 5), f"line {n} " * 5)
    assert "about a" not in said(prompt(persona, talk, context=500))
    again = say(say(talk, ":Well."), "The lamp!")
    assert said(prompt(persona, again, context=500))[-2:] == ["about a", "The lamp!"]
    assert said(prompt(persona, again)).count("about a") == 1


def test_trimmed_at_its_own_turn() -> None:
    """What stood among messages that make room for other lore is told as cut, and comes again."""
    persona = with_lore(entry("a", "lamp"), entry("big", "big", content="w " * 40))
    talk = chat("lamp")
    while prompt(persona, say(talk, "lamp, big"), context=400).trace.left_out == 0:
        talk = say(say(talk, "Well, and then? " * 3), ":So it was. " * 3)
    assert prompt(persona, say(talk, "lamp"), context=400).trace.left_out == 0
    rendered = prompt(persona, say(talk, "lamp, big"), context=400)
    assert traced(rendered)["a"].cut == "it was trimmed with the oldest messages"
    assert "about a" not in said(rendered)
    again = say(say(say(talk, "lamp, big"), ":Yes."), "lamp")
    assert "about a" in said(prompt(persona, again, context=400))


def test_greeting_of_the_chat() -> None:
    """An entry of one greeting is there in a chat that began with that greeting."""
    persona = with_lore(
        entry("a", constant=True, greeting=1),
        persona=replace(
            ADA, greeting="Hello.", alternate_greetings=("{{pick:Hi,Hey}}, {{user}}.",)
        ),
    )
    first, second = greetings(persona, user="Bo", conversation_id="c1")
    assert said(prompt(persona, chat(f":{second}", "x")))[1] == "about a"
    assert "about a" not in said(prompt(persona, chat(f":{first}", "x")))


def test_preview_of_greetings() -> None:
    """A list cannot know what a chat will draw, and does not guess."""
    persona = replace(ADA, greeting="{{pick:Hi,Hey}}, {{user}}, {{roll:d6}}!")
    assert greetings(persona, user="Bo", conversation_id=None) == ("…, Bo, …!",)


def test_shared() -> None:
    """Shared are the messages that are the same in every chat with a user of that name."""
    examples = "<START>\n{{user}}: Late?\n{{char}}: Never."
    persona = with_lore(entry("a", constant=True), persona=replace(ADA, examples=examples))
    turn = prompt(persona, chat("Hi", about_user="A baker.")).turn
    assert (turn.shared, turn.persona) == (4, "ada@r1")
    assert [m.text for m in turn.messages[1:4]] == ["Late?", "Never.", "A new conversation begins."]
    drawn = replace(persona, examples=examples.replace("Never", "{{pick:Never,No}}"))
    assert prompt(drawn, chat("Hi")).turn.shared == 1
    for scene in ("{{roll:d6}} cats", "{{persona}}", "{{if !persona}}a{{/if}}"):
        assert prompt(replace(persona, scenario=scene), chat("Hi")).turn.shared == 0
    plan = Plan(persona, chat("Hi"), supplement="Be brief.")
    costs = dict.fromkeys(plan.texts, 1)
    rendered = plan.render(
        turn_id="t", tenant="t", sampling=Sampling(), budget=Budget(999, 9, costs)
    )
    assert rendered.turn.shared == 0


def test_many_chats_share() -> None:
    """Two chats of one persona and user name have the same shared messages."""
    for persona in Library.shipped().list():
        first = prompt(persona, chat("Hi")).turn
        second = prompt(persona, replace(chat("Ho"), id="c2")).turn
        assert first.shared > 1
        assert first.messages[: first.shared] == second.messages[: second.shared]
