"""Small chats, books and prompts for the tests of prompts."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from backends.api import Role, Sampling
from personas.conversation import ChatMessage, Conversation
from personas.persona import Lorebook, LoreEntry, Persona
from personas.prompt import Budget, Plan, Rendered

if TYPE_CHECKING:
    from datetime import datetime

    from personas.trace import TraceEntry

U, A = Role.USER, Role.ASSISTANT
ADA = Persona(id="ada", revision="r1", name="Ada", description="A clockmaker.", scenario="Noon.")


def entry(id: str, *keys: str, content: str = "", **knobs: object) -> LoreEntry:
    made = LoreEntry(id=id, keys=keys, content=content or f"about {id}")
    return replace(made, **knobs)  # type: ignore[arg-type]


def with_lore(*entries: LoreEntry, persona: Persona = ADA, **book: object) -> Persona:
    lorebook = replace(Lorebook(entries=entries), **book)  # type: ignore[arg-type]
    return replace(persona, lore=(lorebook,))


def chat(*texts: str, user: str = "Bo", **more: object) -> Conversation:
    """A conversation; texts that begin with `:` are replies."""
    made = replace(Conversation("c1", "ada", "r1", user), **more)  # type: ignore[arg-type]
    for text in texts:
        made = say(made, text)
    return made


def say(conversation: Conversation, text: str) -> Conversation:
    reply = text.startswith(":")
    return conversation.say(
        ChatMessage(
            id=f"m{len(conversation.messages)}",
            parent=conversation.head,
            role=A if reply else U,
            name="Ada" if reply else conversation.user,
            text=text.removeprefix(":"),
        )
    )


def prompt(
    persona: Persona,
    conversation: Conversation,
    context: int = 100_000,
    now: datetime | None = None,
) -> Rendered:
    """Renders with a cost of one token a word and four a message; 50 for the reply."""
    plan = Plan(persona, conversation, now=now)
    costs = {text: 4 + len(text.split()) for text in plan.texts}
    return plan.render(
        turn_id="t", tenant="me", sampling=Sampling(seed=1), budget=Budget(context, 50, costs)
    )


def said(rendered: Rendered) -> list[str]:
    """The texts after the scene."""
    return [message.text for message in rendered.turn.messages[1:]]


def traced(rendered: Rendered) -> dict[str, TraceEntry]:
    return {entry.id: entry for entry in rendered.trace.entries}
