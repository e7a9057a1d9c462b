"""The prompt of the next reply, built so that what an engine has cached of it stays valid.

Order: permanent text (the scene, example dialogue), then the conversation, only ever appended to,
then what is volatile. The messages of prompt n and reply n are a prefix of those of prompt n + 1,
unless a trim step lies between them or the card has post-history instructions, which come last.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from backends.api import Message, Role, Turn
from personas.macros import expand
from personas.persona import PromptTooLong

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from backends.api import Sampling
    from personas.conversation import ChatMessage, Conversation
    from personas.persona import Persona

__all__ = ["Budget", "greetings", "prompt_texts", "render"]

# Stands where a card has no system prompt of its own: an order to a model that takes orders, and
# the first sentences of a story to one that only continues text.
_SYSTEM_PROMPT = (
    "This is a conversation between {{user}} and {{char}}. {{char}} stays in character and answers "
    "{{user}} in one to three short, vivid sentences."
)
# Between the examples and the chat. Once only: a model that continues text takes a line that comes
# back every few lines for something to be said.
_BEGINNING = "A new conversation begins."

_START = re.compile(r"<START>", re.IGNORECASE)
# After a trim, history takes this share of the room it has.
_LOW_WATER = 0.6


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


def greetings(persona: Persona, *, user: str, conversation_id: str) -> tuple[str, ...]:
    """The first messages to choose from, the author's first choice first, macros expanded."""
    values = {"char": persona.speaks_as, "user": user}
    texts = (persona.greeting, *persona.alternate_greetings)
    return tuple(expand(text, values, seed=conversation_id) for text in texts if text.strip())


def prompt_texts(
    persona: Persona, conversation: Conversation, supplement: str = ""
) -> tuple[str, ...]:
    """Every text whose cost `render` needs, each once, in the order of the prompt."""
    script = _Script.of(persona, conversation, supplement)
    return tuple(dict.fromkeys(message.text for message in script.messages()))


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
    """The turn for the next reply after the conversation's head.

    `supplement` is a client's own system prompt, macros not expanded: it takes the place of
    `{{original}}` in the card's system prompt, or else follows that prompt.

    Raises `PromptTooLong` when the scene and the last message alone exceed the budget, and
    `KeyError` for a text of `prompt_texts` without a cost.
    """
    script = _Script.of(persona, conversation, supplement)
    keep_examples, first = _trim(script, budget)
    spoken = script.history[first:]
    before = (*script.scene, *(script.examples if keep_examples else ()))
    messages = (*before, *(_message(said) for said in spoken), *script.tail)
    sampled = (*(None for _ in before), *(s.sampled for s in spoken), *(None for _ in script.tail))
    return Turn(
        id=turn_id,
        messages=messages,
        speaker=persona.speaks_as,
        stable=len(before) + len(spoken),
        sampling=sampling,
        tenant=tenant,
        conversation=conversation.id,
        sampled=sampled if any(sampled) else (),
    )


@dataclass(frozen=True, slots=True)
class _Script:
    """The parts of a prompt before any trimming."""

    scene: tuple[Message, ...]
    examples: tuple[Message, ...]
    history: tuple[ChatMessage, ...]
    tail: tuple[Message, ...]

    @classmethod
    def of(cls, persona: Persona, conversation: Conversation, supplement: str) -> _Script:
        fill = _Fill(persona, conversation)
        # A reply that failed before its first word has no text; a speaker of nothing would teach
        # the model to say nothing.
        history = tuple(said for said in conversation.path() if said.text.strip())
        return cls(_scene(fill, supplement), _examples(fill), history, _tail(fill))

    def messages(self) -> tuple[Message, ...]:
        spoken = (_message(said) for said in self.history)
        return (*self.scene, *self.examples, *spoken, *self.tail)


class _Fill:
    """Expands a persona's texts for one conversation."""

    def __init__(self, persona: Persona, conversation: Conversation) -> None:
        self.persona = persona
        self.char = persona.speaks_as
        self.user = conversation.user.strip() or "You"
        self._seed = conversation.id

    def __call__(self, text: str, original: str = "") -> str:
        values = {"char": self.char, "user": self.user, "original": original}
        return expand(text, values, seed=self._seed).strip()


def _scene(fill: _Fill, supplement: str) -> tuple[Message, ...]:
    """One system message: some templates have room for no second one."""
    persona = fill.persona
    paragraphs = [
        _system_prompt(fill, supplement.strip()),
        fill(persona.description),
        _labelled(f"{fill.char}'s personality", fill(persona.personality)),
        _labelled("The scene", fill(persona.scenario)),
    ]
    return (Message(Role.SYSTEM, "\n\n".join(filter(None, paragraphs))),)


def _system_prompt(fill: _Fill, supplement: str) -> str:
    default, written = fill(_SYSTEM_PROMPT), fill.persona.system_prompt
    supplemented = fill(written, supplement)
    if supplemented != fill(written):  # the card has the place for it
        return supplemented
    return "\n\n".join(filter(None, (fill(written, default) or default, supplement)))


def _labelled(label: str, text: str) -> str:
    return f"{label}: {text}" if text else ""


def _tail(fill: _Fill) -> tuple[Message, ...]:
    text = fill(fill.persona.post_history_instructions)
    return (Message(Role.SYSTEM, text),) if text else ()


def _examples(fill: _Fill) -> tuple[Message, ...]:
    """The example dialogue as messages, set apart from the conversation that follows."""
    speakers = _speakers(fill)
    messages: list[Message] = []
    for block in _START.split(fill.persona.examples):
        messages += _block(block, speakers, fill)
    if messages:
        messages.append(Message(Role.SYSTEM, _BEGINNING))
    return tuple(messages)


def _block(block: str, speakers: re.Pattern[str], fill: _Fill) -> list[Message]:
    """A speaker's line opens a message, further lines belong to it; text before is narration."""
    spoken: list[tuple[Role, str | None, list[str]]] = []
    for line in block.splitlines():
        found = speakers.match(line)
        if found is not None:
            is_char = found["char"] is not None
            role, name = (Role.ASSISTANT, fill.char) if is_char else (Role.USER, fill.user)
            spoken.append((role, name, [line[found.end() :]]))
        elif spoken:
            spoken[-1][2].append(line)
        else:
            spoken.append((Role.SYSTEM, None, [line]))
    filled = ((role, name, fill("\n".join(lines))) for role, name, lines in spoken)
    return [Message(role, text, name) for role, name, text in filled if text]


def _speakers(fill: _Fill) -> re.Pattern[str]:
    """Matches `{{char}}:`, `<USER>:`, the names themselves and the like at a line's start."""
    char = "|".join(re.escape(name) for name in dict.fromkeys((fill.char, fill.persona.name)))
    user = re.escape(fill.user)
    return re.compile(
        rf"\s*(?:(?P<char>\{{\{{\s*char\s*\}}\}}|<BOT>|{char})"
        rf"|(?:\{{\{{\s*user\s*\}}\}}|<USER>|{user}))\s*:\s*",
        re.IGNORECASE,
    )


def _message(said: ChatMessage) -> Message:
    return Message(said.role, said.text, said.name)


def _trim(script: _Script, budget: Budget) -> tuple[bool, int]:
    """Whether the examples stay, and the first message of the history that does.

    Replays the conversation from its start, so that every later prompt finds the same cuts. When
    the total passes the room, first the examples go as a whole; if that is not enough, the oldest
    messages go until the history is well below what it may take, for many turns at once.
    """

    def cost(messages: Sequence[Message]) -> int:
        return sum(budget.costs[message.text] for message in messages)

    fixed, examples = cost((*script.scene, *script.tail)), cost(script.examples)
    costs = [budget.costs[said.text] for said in script.history]
    needed = fixed + (costs[-1] if costs else 0)
    if needed > budget.room:
        raise PromptTooLong(needed, budget.room)
    keep_examples = fixed + examples <= budget.room
    first = spoken = 0
    for at, added in enumerate(costs):
        spoken += added
        if fixed + spoken + (examples if keep_examples else 0) > budget.room:
            keep_examples = False
        if fixed + spoken > budget.room:
            while first < at and spoken > _LOW_WATER * (budget.room - fixed):
                spoken -= costs[first]
                first += 1
    return keep_examples, first
