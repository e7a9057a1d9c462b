"""The prompt of the next reply, built so that what an engine has cached of it stays valid.

Order: permanent text (the scene, example dialogue, who the user is), then the conversation, only
ever appended to, with lore between its messages where it came in, then the tail, which is volatile.
The messages of prompt n and reply n are a prefix of those of prompt n + 1, unless `Trace.breaks`
names what lies between them. All of it depends on the persona, the conversation and the budget
alone, so that a restart gives the same prompt.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from backends.api import Role, Turn
from personas.persona import PromptTooLong
from personas.script import Script, Voice
from personas.trace import Trace, TraceEntry
from personas.window import LORE_SHARE, Window, arrivals, fit

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from backends.api import Message, Sampling
    from personas.conversation import ChatMessage, Conversation
    from personas.lorebook import Active
    from personas.persona import Persona
    from personas.window import Cut

__all__ = ["Budget", "Plan", "Rendered", "greetings", "prompt_texts", "render"]

# What the clock and the last messages may add to a tail before it costs history.
_TAIL_SLACK = 32


@dataclass(frozen=True, slots=True)
class Budget:
    """Room in tokens: the model's `context` less the `reply`; `costs` holds what texts take.

    A cost is what the backend that will speak counts for a text, its template's share included.
    """

    context: int
    reply: int
    costs: Mapping[str, int]

    @property
    def room(self) -> int:
        """Tokens that the prompt may have."""
        return self.context - self.reply


class Rendered(NamedTuple):
    """A turn, and what lore did in it."""

    turn: Turn
    trace: Trace


def greetings(persona: Persona, *, user: str, conversation_id: str | None) -> tuple[str, ...]:
    """The first messages to choose from, the author's first choice first, macros expanded.

    `conversation_id` None is a preview for lists: what each chat draws for itself is "…".
    """
    return tuple(text for _, text in _greetings(persona, user, conversation_id))


def prompt_texts(
    persona: Persona, conversation: Conversation, supplement: str = ""
) -> tuple[str, ...]:
    """Every text whose cost `render` needs, each once, in the order of the prompt."""
    return Plan(persona, conversation, supplement).texts


def render(
    persona: Persona,
    conversation: Conversation,
    *,
    turn_id: str,
    tenant: str,
    sampling: Sampling,
    budget: Budget,
    supplement: str = "",
) -> Turn:
    """The turn for the next reply after the conversation's head; see `Plan`."""
    plan = Plan(persona, conversation, supplement)
    return plan.render(turn_id=turn_id, tenant=tenant, sampling=sampling, budget=budget).turn


class Plan:
    """The next prompt of a conversation before anything is counted.

    `supplement` is a client's own system prompt, macros not expanded: it takes the place of
    `{{original}}` in the card's system prompt, or else follows that prompt. `now` is what clocks
    in the tail tell; without it they stay neutral. `texts` are those whose cost `render` needs,
    each once.
    """

    def __init__(
        self,
        persona: Persona,
        conversation: Conversation,
        supplement: str = "",
        now: datetime | None = None,
    ) -> None:
        self._persona = persona
        self._conversation = conversation
        # A reply that failed before its first word has no text; a speaker of nothing would teach
        # the model to say nothing.
        self._history = tuple(said for said in conversation.path() if said.text.strip())
        self._script = script = Script(persona, conversation, supplement, self._history, now)
        asks = script.lore.asks_greeting
        greeting = _greeting(persona, conversation, self._history) if asks else None
        self._came = arrivals(script, self._history, conversation.id, greeting)
        self._whole = script.scene(script.permanent)
        self._bare = script.scene(())
        self.texts = tuple(dict.fromkeys(self._texts()))

    def render(self, *, turn_id: str, tenant: str, sampling: Sampling, budget: Budget) -> Rendered:
        """The turn after the conversation's head, and its trace.

        Raises `PromptTooLong` when the scene and the last message alone exceed the budget, and
        `KeyError` for one of `texts` without a cost.
        """
        script, costs, room = self._script, budget.costs, budget.room
        limits = [
            int(LORE_SHARE * room) if book.token_budget is None else book.token_budget
            for book in script.lore.books
        ]
        kept, cut = self._standing(costs, limits)
        scene, scene_cost = self._scene(kept, costs)
        fixed = scene_cost + _total(script.about, costs)
        tail, usual = _total(script.tail, costs), _total(script.usual_tail, costs)
        if script.tail != script.usual_tail:
            usual += _TAIL_SLACK
        needed = fixed + tail + (costs[self._history[-1].text] if self._history else 0)
        if needed > room:
            raise PromptTooLong(needed, room)
        spent = [0] * len(limits)
        for active, text in kept:
            spent[active.book] += costs[text]
        window = Window(
            script, self._came, costs, room=room - fixed - usual, limits=limits, spent=spent
        )
        window.replay(self._history)
        window.trim(1, less=max(tail - usual, 0))
        examples = script.examples if window.examples else ()
        before = (scene, *examples, *script.about)
        said = tuple(item.message for item in window.items)
        sampled = (
            *(None for _ in before),
            *(item.sampled for item in window.items),
            *(None for _ in script.tail),
        )
        turn = Turn(
            id=turn_id,
            messages=(*before, *said, *script.tail),
            speaker=self._persona.speaks_as,
            stable=len(before) + len(said),
            sampling=sampling,
            tenant=tenant,
            conversation=self._conversation.id,
            sampled=sampled if any(sampled) else (),
            shared=self._shared(len(examples)),
            persona=f"{self._persona.id}@{self._persona.revision}",
        )
        spoken = _total(examples, costs) + window.cost
        return Rendered(turn, self._trace(window, kept, cut, costs, room, fixed + tail + spoken))

    def _texts(self) -> Sequence[str]:
        script = self._script
        scene = [self._whole.text, self._bare.text] if script.permanent else [self._whole.text]
        return [
            *scene,
            *(text for _, text in script.permanent if text),
            *(message.text for message in script.examples),
            *(message.text for message in script.about),
            *(said.text for said in self._history),
            *(text for text in self._came.texts.values() if text),
            *(message.text for message in script.tail),
            *(message.text for message in script.usual_tail),
        ]

    def _standing(
        self, costs: Mapping[str, int], limits: Sequence[int]
    ) -> tuple[list[tuple[Active, str]], list[Cut]]:
        """The permanent entries that their books have tokens for, with their texts."""
        texts = {active.entry.id: text for active, text in self._script.permanent if text}
        found = [active for active, text in self._script.permanent if text]
        prices = {entry: costs[text] for entry, text in texts.items()}
        kept, cut = fit(found, prices, limits, [0] * len(limits), full=False)
        return [(active, texts[active.entry.id]) for active in kept], cut

    def _scene(
        self, kept: Sequence[tuple[Active, str]], costs: Mapping[str, int]
    ) -> tuple[Message, int]:
        """The scene and its cost: exact, or at most that where lore was cut from it."""
        if len(kept) == sum(bool(text) for _, text in self._script.permanent):
            return self._whole, costs[self._whole.text]
        return self._script.scene(kept), costs[self._bare.text] + sum(costs[t] for _, t in kept)

    def _shared(self, examples: int) -> int:
        scene, spoken = self._script.shared
        return (1 + (examples if spoken else 0)) if scene else 0

    def _trace(
        self,
        window: Window,
        kept: Sequence[tuple[Active, str]],
        cut: Sequence[Cut],
        costs: Mapping[str, int],
        room: int,
        tokens: int,
    ) -> Trace:
        entries = [_traced(active, "", costs[text], place="scene") for active, text in kept]
        entries += [
            _traced(active, "", costs[message.text], place="tail")
            for active, message in self._script.closing
        ]
        now = {active.entry.id: active for active in window.active}
        for item in window.items:
            if item.plant is not None:
                newest = window.planted[item.plant.active.entry.id] == item.plant.at
                active = now.get(item.plant.active.entry.id) if newest else None
                place = "before" if item.plant.before else "after"
                said = self._history[item.plant.at].id
                source = self._source(active or item.plant.active)
                one = _traced(
                    active or item.plant.active,
                    source,
                    item.cost,
                    cause="" if active else "earlier",
                    place=place,
                    message=said,
                )
                entries.append(one)
        lore = sum(entry.tokens for entry in entries)
        entries += [
            _traced(
                one.active,
                self._source(one.active),
                costs[self._text(one.active)],
                cut=one.why,
            )
            for one in (*cut, *window.cuts)
        ]
        turnout = self._came.turnouts.get(len(self._history) - 1)
        entries += [
            TraceEntry(id=r.entry.id, name=r.entry.name, cause="", key=r.key, cut=r.why)
            for r in (turnout.rejected if turnout else ())
        ]
        breaks = {"tail": bool(self._script.tail), "trim": window.moved, "examples": window.dropped}
        return Trace(
            conversation=self._conversation.id,
            persona=f"{self._persona.id}@{self._persona.revision}",
            message=self._history[-1].id if self._history else "",
            room=room,
            tokens=tokens,
            lore_tokens=lore,
            left_out=window.first,
            examples=window.examples,
            breaks=tuple(name for name, broken in breaks.items() if broken),
            entries=tuple(entries),
        )

    def _text(self, active: Active) -> str:
        standing = {one.entry.id: text for one, text in self._script.permanent}
        return self._came.texts.get(active.entry.id) or standing[active.entry.id]

    def _source(self, active: Active) -> str:
        if isinstance(active.source, int):
            return self._history[active.source].id
        return active.source or ""


def _traced(
    active: Active,
    source: str,
    tokens: int,
    *,
    cause: str = "",
    place: str = "",
    message: str = "",
    cut: str = "",
) -> TraceEntry:
    return TraceEntry(
        id=active.entry.id,
        name=active.entry.name,
        cause=cause or active.cause.value,
        key=active.key,
        source=source,
        place=place,
        message=message,
        tokens=tokens,
        cut=cut,
    )


def _total(messages: Sequence[Message], costs: Mapping[str, int]) -> int:
    return sum(costs[message.text] for message in messages)


def _greetings(persona: Persona, user: str, conversation_id: str | None) -> list[tuple[int, str]]:
    """Each greeting that has a text, with its number in the card."""
    voice = Voice(persona, user, conversation_id)
    texts = (persona.greeting, *persona.alternate_greetings)
    found = ((number, voice(text)) for number, text in enumerate(texts))
    return [(number, text) for number, text in found if text]


def _greeting(
    persona: Persona, conversation: Conversation, history: Sequence[ChatMessage]
) -> int | None:
    """Which greeting the chat began with; None when it began otherwise."""
    if not history or history[0].role is not Role.ASSISTANT:
        return None
    told = _greetings(persona, conversation.user, conversation.id)
    return next((number for number, text in told if text == history[0].text.strip()), None)
