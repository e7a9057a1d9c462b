"""Turns are composed with the costs of the backend that speaks, and the clock of the machine."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from backends.api import Role
from backends.scripted import Script, ScriptedBackend
from gateway.composing import Composer
from gateway.standby import Standby
from gateway.trace_http import asked
from personas.conversation import ChatMessage, Conversation
from personas.persona import Lorebook, LoreEntry, Persona, PromptTooLong

WREN = Persona(
    id="wren",
    revision="r",
    name="Wren",
    description="{{char}} looks at the clock: {{time}}.",
    lore=(Lorebook(entries=(LoreEntry(id="flood", keys=("flood",), content="It was wet."),)),),
)


def chat(*texts: str) -> Conversation:
    made = Conversation("c1", "wren", "r", "Bo")
    for at, text in enumerate(texts):
        role = Role.ASSISTANT if at % 2 else Role.USER
        made = made.say(ChatMessage(f"m{at}", made.head, role, "x", text))
    return made


def composer() -> Composer:
    return Composer(lambda suits: suits, 5.0, lambda: datetime(2026, 11, 23, 7, 5, tzinfo=UTC))


async def test_compose() -> None:
    """Lore is planted, the time told in the tail, and the trace counts as the backend does."""
    standby = Standby(ScriptedBackend())
    turn, trace = await composer().render(standby, WREN, chat("The flood?"), "t1")
    texts = [message.text for message in turn.messages]
    assert texts[0].endswith("Wren looks at the clock: the present time.")
    assert texts[1:] == ["It was wet.", "The flood?", "It is Monday, 23 November 2026, 07:05."]
    assert (turn.stable, turn.shared, turn.persona) == (3, 1, "wren@r")
    assert trace.tokens == sum(await standby.backend.count(texts))
    assert turn == await composer().compose(standby, WREN, chat("The flood?"), "t1")
    await standby.aclose()


async def test_too_long() -> None:
    """What cannot fit is refused with its size."""
    standby = Standby(ScriptedBackend(Script(context=210)))
    with pytest.raises(PromptTooLong) as refused:
        await composer().compose(standby, WREN, chat("word " * 300), "t1")
    assert refused.value.needed > 300
    await standby.aclose()


def test_asked() -> None:
    """A trace is of the prompt that the last reply answered, else of the next one."""
    assert asked(chat("One", "Two", "Three")).head == "m2"
    assert asked(chat("One", "Two")).head == "m0"
    assert asked(chat("One", "Two", "Three", "Four")).head == "m2"
    assert asked(chat()).head is None
