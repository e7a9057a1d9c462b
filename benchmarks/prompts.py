"""Prompts of 60 turns with lore: the share of tokens that stays cached, ours and a literal one's.

The literal assembly does what cards say word for word: lore where its author put it, looked for
anew at every turn, notes so many messages before the end, macros drawn and clocks read again, and a
full context trimmed one message at a time. Every shipped character speaks, and every line of the
person has a key of its lorebook; one without a book gets one of 24 entries. No model is needed.
Milliseconds are of processor time, so that busy cores do not count.
"""

from __future__ import annotations

import random
import re
import statistics
import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import cycle, islice, pairwise
from typing import TYPE_CHECKING

from backends.api import Message, Role, Sampling
from benchmarks.turns import LINES, said
from personas.conversation import Conversation
from personas.library import Library
from personas.lorebook import Lore
from personas.lorebook_watch import Watch
from personas.persona import Lorebook, LoreEntry, Persona, Place
from personas.prompt import Budget, Plan, greetings
from personas.script import Script, Voice

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Sequence

    from personas.conversation import ChatMessage
    from personas.prompt import Rendered

REPLY_TOKENS = 200
BEGAN = datetime(2026, 11, 23, 19, 0, tzinfo=UTC)
TOPICS = (
    *("road", "mud", "friend", "place", "night", "story", "brave", "secret", "people", "stay"),
    *("forgive", "eaten", "bread", "cheese", "raining", "day", "sleep", "company", "finished"),
    *("leaving", "working", "passing", "evening", "listen"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--context", type=int, default=4096, help="tokens the model takes")


async def run(args: argparse.Namespace) -> dict[str, object]:
    """Both shares over all characters, per character, and what lore and prompts take to make."""
    turns = 12 if args.smoke else 60
    cards: dict[str, dict[str, float]] = {}
    ours, naive = Tally(), Tally()
    for persona in Library.shipped().list():
        full = persona if persona.lore else replace(persona, lore=(topics(),))
        talk = conversations(full, turns)
        one, other = Tally(), Tally()
        prompts = rendered(full, talk, args.context)
        one.follow(prompts, replies(full))
        other.follow(literal(full, talk, args.context), replies(full))
        cards[persona.id] = {
            "stable_share": one.share,
            "naive_share": other.share,
            "entries": sum(len(book.entries) for book in full.lore),
            "entries_that_came": came(full, prompts),
        }
        ours.add(one)
        naive.add(other)
    return {
        "stable_share": ours.share,
        "naive_share": naive.share,
        "turns": turns,
        "context": args.context,
        "cards": cards,
        "lore_scan_4000_ms": lore_scan(400 if args.smoke else 4000),
        **render_180(),
    }


@dataclass(slots=True)
class Tally:
    """Tokens of prompts, and how many of them the prompt before had already, reply included."""

    tokens: int = 0
    cached: int = 0

    @property
    def share(self) -> float:
        return round(self.cached / self.tokens, 4)

    def add(self, other: Tally) -> None:
        self.tokens += other.tokens
        self.cached += other.cached

    def follow(self, prompts: Sequence[Sequence[Message]], said: Sequence[str]) -> None:
        """Counts a conversation's prompts, the first one not: nobody has read anything then."""
        for number, (before, after) in enumerate(pairwise(prompts)):
            known = [*before, Message(Role.ASSISTANT, said[number % len(said)])]
            one, two = list(tokens(known)), list(tokens(after))
            self.tokens += len(two)
            pairs = enumerate(zip(one, two, strict=False))
            self.cached += next((at for at, (a, b) in pairs if a != b), min(len(one), len(two)))


def tokens(messages: Sequence[Message]) -> Iterator[str]:
    """Messages as a chat template writes them, words cut into pieces of four letters."""
    for message in messages:
        yield f"<{message.role}>"
        yield from pieces(message.text)
        yield "<end>"


def pieces(text: str) -> list[str]:
    return re.findall(r"\s?\w{1,4}|\s?[^\w\s]|\s", text)


def cost(text: str) -> int:
    return len(pieces(text)) + 2


def topics() -> Lorebook:
    """An entry for each of the things that are talked about, at the places authors use."""
    places = (Place.BEFORE_CHAR, Place.AFTER_CHAR, Place.DEPTH)
    entries = tuple(
        LoreEntry(
            id=f"topic.{word}",
            keys=(word,),
            content=f"About the word {word!r}: here it is never said without thinking of somebody "
            "who is gone, and nobody from outside can know which of them is meant tonight.",
            place=places[number % len(places)],
            order=number,
        )
        for number, word in enumerate(TOPICS)
    )
    return Lorebook(name="topics", entries=entries, scan_depth=2)


def replies(persona: Persona) -> list[str]:
    """What the character says: the lines of its own examples, one after the other."""
    lines = re.findall(r"\{\{char\}\}:\s*(.+)", persona.examples)
    return lines or ["Well. Sit down and tell me."]


def conversations(persona: Persona, turns: int) -> list[Conversation]:
    """The conversation as it is at each turn."""
    empty = Conversation("bench", persona.id, persona.revision, "Robin")
    told = greetings(persona, user="Robin", conversation_id="bench")
    chat = said(empty, Role.ASSISTANT, persona.speaks_as, told[0] if told else "Hello.")
    spoken, answers, touched = [], cycle(replies(persona)), cycle(keys(persona))
    for number, line in enumerate(islice(cycle(LINES), turns)):
        text = f"{line} ({number}) And what of {next(touched)}?"
        chat = said(chat, Role.USER, "Robin", text)
        spoken.append(chat)
        chat = said(chat, Role.ASSISTANT, persona.speaks_as, next(answers))
    return spoken


def keys(persona: Persona) -> list[str]:
    """A key of each entry of the persona's books that waits for one."""
    entries = (entry for book in persona.lore for entry in book.entries if not entry.constant)
    return [entry.keys[0] for entry in entries if entry.keys and not entry.keys[0].startswith("/")]


def came(persona: Persona, prompts: Sequence[Sequence[Message]]) -> int:
    """How many entries stood in a prompt."""
    texts = "\n".join({message.text for prompt in prompts for message in prompt})
    voice = Voice(persona, "Robin", "bench")
    entries = (entry for book in persona.lore for entry in book.entries)
    return sum(voice(entry.content) in texts for entry in entries if entry.content.strip())


def render(persona: Persona, chat: Conversation, context: int, now: datetime | None) -> Rendered:
    plan = Plan(persona, chat, now=now)
    costs = {text: cost(text) for text in plan.texts}
    return plan.render(
        turn_id="t",
        tenant="bench",
        sampling=Sampling(max_tokens=REPLY_TOKENS),
        budget=Budget(context, REPLY_TOKENS, costs),
    )


def rendered(
    persona: Persona, talk: Sequence[Conversation], context: int
) -> list[tuple[Message, ...]]:
    """Our prompts."""
    return [
        render(persona, chat, context, BEGAN + timedelta(minutes=number)).turn.messages
        for number, chat in enumerate(talk)
    ]


def literal(persona: Persona, talk: Sequence[Conversation], context: int) -> list[list[Message]]:
    """The prompts of an assembly that follows the card word for word."""
    prompts = []
    for number, chat in enumerate(talk):
        history = chat.path()
        now = BEGAN + timedelta(minutes=number)
        # Another seed at every turn: macros are drawn again.
        script = Script(persona, replace(chat, id=f"turn {number}"), "", history, now)
        lore = Watch(script.lore, seed=f"turn {number}")
        for message in history:
            lore.hear(message.text, reply=message.role is Role.ASSISTANT)
        found = [(active, script.voice(active.entry.content)) for active in lore.turn().active]
        deep = (Place.DEPTH, Place.EXAMPLES)
        high = [(active, text) for active, text in found if active.entry.place not in deep]
        scene = script.scene([*script.permanent, *high])
        before = [scene, *script.examples, *script.about]
        notes = [(n.entry.depth, n.entry.role, script.voice(n.entry.content)) for n in script.notes]
        notes += [(a.entry.depth, a.entry.role, t) for a, t in found if a.entry.place in deep]
        room = context - REPLY_TOKENS - sum(cost(message.text) for message in before)
        room -= sum(cost(text) for _, _, text in notes)
        room -= sum(cost(message.text) for message in script.tail)
        spoken = _newest(history, room)
        for depth, role, text in notes:
            spoken.insert(max(0, len(spoken) - depth), script.message(role, text))
        prompts.append([*before, *spoken, *script.tail])
    return prompts


def _newest(history: Sequence[ChatMessage], room: int) -> list[Message]:
    """The newest messages that fit."""
    spoken: list[Message] = []
    for message in reversed(history):
        room -= cost(message.text)
        if room < 0 and spoken:
            break
        spoken.append(Message(message.role, message.text, message.name))
    return spoken[::-1]


def lore_scan(count: int) -> float:
    """Median milliseconds of a turn over a book of so many entries, one in twenty a pattern."""
    draw = random.Random(7)
    words = [
        "".join(draw.choices("abcdefghijklmnoprstuvw", k=draw.randint(5, 9))) for _ in range(9000)
    ]
    entries = tuple(
        LoreEntry(
            id=str(number),
            keys=(words[number], rf"/\b{words[number + count]}s?\b/i")
            if number % 20 == 0
            else (words[number], words[number + count]),
            content=" ".join(draw.choices(words[2 * count :], k=40)),
        )
        for number in range(count)
    )
    watch = Watch(Lore([Lorebook(entries=entries, recursive=True)]), seed="bench")
    took = []
    for number in range(60):
        spoken = [*draw.choices(words[2 * count :], k=60), *draw.choices(words[:count], k=3)]
        text = " ".join(spoken)
        began = time.thread_time()
        watch.hear(text, reply=number % 2 == 0)
        watch.turn()
        took.append((time.thread_time() - began) * 1e3)
    return round(statistics.median(took), 3)


def render_180() -> dict[str, float]:
    """Median milliseconds to render a chat of 180 messages, tokens not counted: the next turn, and
    the first one after a restart."""
    persona = Library.shipped().list()[0]
    persona = replace(persona, lore=(*persona.lore, topics()))
    talk = conversations(persona, 90)
    costs = {text: cost(text) for text in Plan(persona, talk[-1]).texts}
    cold: list[float] = []
    warm: list[float] = []
    for number in range(30):
        fresh = replace(persona, lore=tuple(replace(book) for book in persona.lore))
        for at, took in ((-2, None), (-2, cold), (-1, warm)):
            # A chat of another name is new here; the book is compiled when a server starts.
            chat = replace(talk[at], id=f"{number}" if took is not None else "other")
            began = time.thread_time()
            plan = Plan(fresh, chat)
            plan.render(
                turn_id="t", tenant="t", sampling=Sampling(), budget=Budget(32_768, 200, costs)
            )
            if took is not None:
                took.append((time.thread_time() - began) * 1e3)
    return {
        "render_180_ms": round(statistics.median(warm), 3),
        "render_180_cold_ms": round(statistics.median(cold), 3),
    }
