"""What an author should know of a card before people talk with it: costs, dead parts, sizes.

Nothing here changes a card. Tokens are counted by whoever calls, so that they are a model's own.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from backends.api import Role, Sampling
from personas.conversation import ChatMessage, Conversation
from personas.macros import draws, expand, tells_time
from personas.persona import Place, PromptTooLong
from personas.prompt import Budget, greetings, prompt_texts, render

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from backends.api import Message
    from personas.card import ImportReport
    from personas.persona import LoreEntry, Persona

__all__ = ["Checked", "Level", "Line", "Remark", "Size", "check"]

# What every field takes at most of the model's context; a field that is over leaves too little
# for the chat, or is sent again at every turn.
_SHARES = {
    "description": 1 / 4,
    "personality": 1 / 12,
    "scenario": 1 / 12,
    "system_prompt": 1 / 8,
    "greeting": 1 / 8,
    "examples": 1 / 4,
    "post_history_instructions": 1 / 24,
    "depth_prompt": 1 / 24,
}
_PERMANENT = ("system_prompt", "description", "personality", "scenario")
_PERMANENT_SHARE = 3 / 8
_ENTRY_SHARE = 1 / 16
_LAST = ("post_history_instructions", "depth_prompt")
# Fields that every tool writes and that have no effect on what a character says.
_ORDINARY = frozenset(
    (
        "spec",
        "spec_version",
        "data",
        "assets",
        "extensions",
        "group_only_greetings",
        "source",
        "creation_date",
        "modification_date",
        "creator_notes_multilingual",
    )
)
_INNERMOST = re.compile(r"\{\{[^{}]+\}\}")
_BLOCK = re.compile(r"\{\{\s*(?:if\b|else\b|/if\b|outlet\s*:|//|comment\b|hidden_key\b)", re.I)
# Macros that stand for a text which only a chat has.
_VALUES = (
    "char",
    "user",
    "original",
    "charversion",
    "description",
    "personality",
    "scenario",
    "persona",
    "mesexamples",
    "charprompt",
    "charinstruction",
    "chardepthprompt",
    "lastmessage",
    "lastusermessage",
    "lastcharmessage",
)
_PUPPET = re.compile(r"^\s*(?:\{\{user\}\}|<USER>)\s*:", re.IGNORECASE | re.MULTILINE)
_MANY = 40  # remarks of one kind


class Level(StrEnum):
    """How much a remark matters."""

    ERROR = "error"
    """The character will not do what the author wrote."""
    WARNING = "warning"
    """It will, and costs more than it must or reads otherwise than meant."""
    NOTE = "note"
    """Good to know."""


@dataclass(frozen=True, slots=True)
class Remark:
    """One thing to know. `code` is stable; `where` is a field or an entry of the lorebook."""

    level: Level
    code: str
    where: str
    message: str


@dataclass(frozen=True, slots=True)
class Size:
    """What a field takes; `most` is what it may, None where nothing is said."""

    where: str
    tokens: int
    most: int | None = None


@dataclass(frozen=True, slots=True)
class Line:
    """One message of the prompt; `stable`: it stays as it is for the whole chat."""

    message: Message
    tokens: int
    stable: bool


@dataclass(frozen=True, slots=True)
class Checked:
    """All remarks, the worst first; sizes in tokens; the prompt of a first reply.

    `permanent` are the tokens that every prompt of a chat begins with, examples not counted.
    `prompt` is empty when it does not fit, which then is a remark.
    """

    remarks: tuple[Remark, ...]
    sizes: tuple[Size, ...]
    permanent: int
    prompt: tuple[Line, ...]

    @property
    def clean(self) -> bool:
        """Whether there is nothing but notes."""
        return all(remark.level is Level.NOTE for remark in self.remarks)


def check(
    persona: Persona,
    report: ImportReport,
    count: Callable[[str], int],
    *,
    context: int = 4096,
    reply: int = 256,
) -> Checked:
    """Looks at a persona and its import. `count` gives the tokens of a text, `context` is the
    model's, `reply` what of it a reply may take."""
    fields = {
        "system_prompt": persona.system_prompt,
        "description": persona.description,
        "personality": persona.personality,
        "scenario": persona.scenario,
        "examples": persona.examples,
        "greeting": persona.greeting,
        **{
            f"alternate_greetings.{number}": text
            for number, text in enumerate(persona.alternate_greetings)
        },
        "post_history_instructions": persona.post_history_instructions,
        "depth_prompt": persona.depth_prompt.text if persona.depth_prompt else "",
    }
    sizes = [
        Size(where, count(text), _most(where, context)) for where, text in fields.items() if text
    ]
    permanent = sum(size.tokens for size in sizes if size.where in _PERMANENT)
    remarks = [*_reported(report), *_texts(persona, fields)]
    for size in sizes:
        if size.most is not None and size.tokens > size.most:
            message = f"{size.tokens} tokens, more than the {size.most} that leave room for a chat"
            remarks.append(Remark(Level.WARNING, "over_budget", size.where, message))
    if permanent > _PERMANENT_SHARE * context:
        most = int(_PERMANENT_SHARE * context)
        message = f"{permanent} tokens of permanent text, more than {most} of {context}"
        remarks.append(Remark(Level.ERROR, "over_budget", "permanent", message))
    for book_number, book in enumerate(persona.lore):
        entries = [(f"lore.{entry.name or entry.id}", entry) for entry in book.entries]
        for where, entry in entries:
            size = Size(where, count(entry.content), int(_ENTRY_SHARE * context))
            sizes.append(size)
            remarks += _entry(where, entry, size)
        remarks += _book(f"lore {book.name or book_number}", book.entries)
    prompt, failed = _prompt(persona, count, context, reply)
    remarks += failed
    order = [*Level]
    kept: list[Remark] = []
    counts: Counter[str] = Counter()
    for remark in sorted(dict.fromkeys(remarks), key=lambda each: order.index(each.level)):
        counts[remark.code] += 1
        if counts[remark.code] <= _MANY:
            kept.append(remark)
    return Checked(tuple(kept), tuple(sizes), permanent, prompt)


def _most(where: str, context: int) -> int | None:
    share = _SHARES.get(where.partition(".")[0].replace("alternate_greetings", "greeting"))
    return None if share is None else int(share * context)


def _reported(report: ImportReport) -> Iterator[Remark]:
    for path in report.dropped:
        yield Remark(Level.ERROR, "dropped", path, "its value makes no sense; it is not read")
    for path in report.repaired:
        message = "it was read as something else than it is written"
        yield Remark(Level.WARNING, "repaired", path, message)
    for path in report.preserved:
        key = path.removeprefix("data.")
        if key in _ORDINARY:
            continue
        if "." in key:
            yield Remark(Level.WARNING, "not_executed", path, "has no effect here; it is kept")
        else:
            yield Remark(Level.NOTE, "not_executed", path, "unknown here; it is kept")


def _texts(persona: Persona, fields: dict[str, str]) -> Iterator[Remark]:
    for where, text in fields.items():
        yield from _macros(where, text)
        if where in (*_PERMANENT, "examples"):
            if tells_time(text):
                message = (
                    "a clock in permanent text would change the prompt from its start; it reads "
                    "as neutral words here, and the time is told at the end of the prompt"
                )
                yield Remark(Level.WARNING, "clock_in_permanent", where, message)
            if draws(text):
                message = (
                    "a random choice in permanent text is drawn once per chat; no two chats then "
                    "share a cached prompt, and other programs draw again at every turn"
                )
                yield Remark(Level.WARNING, "random_in_permanent", where, message)
    for where in _LAST:
        text = fields[where]
        if text:
            message = "stands near the end, so it is computed again at every turn: keep it short"
            yield Remark(Level.NOTE, "sent_every_turn", where, message)
    if not persona.greeting.strip():
        message = "without a greeting the person has to begin"
        yield Remark(Level.WARNING, "no_greeting", "greeting", message)
    if not (persona.description + persona.personality).strip():
        message = "nothing says who this is"
        yield Remark(Level.ERROR, "no_description", "description", message)
    if not persona.examples.strip():
        message = "example dialogue is what shows a small model how the character talks"
        yield Remark(Level.NOTE, "no_examples", "examples", message)
    elif "<start>" not in persona.examples.lower():
        message = "no <START> before a dialogue: all of it is read as one"
        yield Remark(Level.NOTE, "no_start", "examples", message)
    for where, text in fields.items():
        if "greeting" in where and _PUPPET.search(text):
            message = "a greeting that speaks for {{user}} teaches the model to do so"
            yield Remark(Level.WARNING, "speaks_for_user", where, message)
    if not persona.tags:
        yield Remark(Level.NOTE, "no_tags", "tags", "nobody finds it by a tag")
    if not persona.creator_notes.strip():
        message = "people read them before they choose"
        yield Remark(Level.NOTE, "no_notes", "creator_notes", message)


def _macros(where: str, text: str) -> Iterator[Remark]:
    values = dict.fromkeys(_VALUES, "x")
    for macro in dict.fromkeys(_INNERMOST.findall(text)):
        if _BLOCK.match(macro) or expand(macro, values, seed="") != macro:
            continue
        yield Remark(Level.WARNING, "unknown_macro", where, f"{macro[:60]} is unknown: it is text")
    opened, closed = text.count("{{"), text.count("}}")
    if opened != closed:
        message = f"{opened} times {{{{ and {closed} times }}}}"
        yield Remark(Level.WARNING, "unbalanced_braces", where, message)


def _entry(where: str, entry: LoreEntry, size: Size) -> Iterator[Remark]:
    yield from _macros(where, entry.content)
    if not entry.enabled or entry.barred:
        yield Remark(Level.NOTE, "disabled", where, "it is turned off")
        return
    always = entry.constant or entry.forced
    if not entry.content.strip() and not entry.disables_system_prompt:
        yield Remark(Level.WARNING, "empty_entry", where, "it says nothing")
    if not always and not entry.keys:
        message = "no key and not constant: it never comes in"
        yield Remark(Level.ERROR, "never_comes_in", where, message)
    if not entry.regex and not entry.whole_words:
        for key in entry.keys:
            if len(key) < 3 and key.isascii():
                message = f"the key {key!r} is in nearly every message"
                yield Remark(Level.WARNING, "short_key", where, message)
    if always and (tells_time(entry.content) or draws(entry.content)):
        message = "constant, and different from chat to chat or turn to turn"
        yield Remark(Level.WARNING, "volatile_entry", where, message)
    if size.most is not None and size.tokens > size.most:
        message = f"{size.tokens} tokens, more than {size.most}: split it by key"
        yield Remark(Level.WARNING, "over_budget", where, message)


def _book(where: str, entries: tuple[LoreEntry, ...]) -> Iterator[Remark]:
    keyed = [e for e in entries if e.enabled and e.keys and not e.constant]
    high = sum(e.place is not Place.DEPTH for e in keyed)
    if high:
        message = (
            f"{high} of {len(keyed)} keyed entries want to stand above the chat: here they come "
            "in late and stay; programs that follow the card compute the whole chat anew"
        )
        yield Remark(Level.NOTE, "lore_at_top", where, message)
    contents = Counter(entry.content.strip() for entry in entries if entry.content.strip())
    double = sum(count - 1 for count in contents.values())
    if double:
        message = f"{double} entries say what another one says"
        yield Remark(Level.WARNING, "double_entry", where, message)


def _prompt(
    persona: Persona, count: Callable[[str], int], context: int, reply: int
) -> tuple[tuple[Line, ...], list[Remark]]:
    """The prompt of the reply to a first "Hello." """
    seed = "lint"
    opening = greetings(persona, user="You", conversation_id=seed)
    conversation = Conversation(seed, persona.id, persona.revision, "You")
    parent = None
    if opening:
        said = ChatMessage("1", None, Role.ASSISTANT, persona.speaks_as, opening[0])
        conversation, parent = conversation.say(said), "1"
    conversation = conversation.say(ChatMessage("2", parent, Role.USER, "You", "Hello."))
    costs = {text: count(text) for text in prompt_texts(persona, conversation)}
    try:
        turn = render(
            persona,
            conversation,
            turn_id=seed,
            tenant=seed,
            sampling=Sampling(),
            budget=Budget(context, reply, costs),
        )
    except PromptTooLong as error:
        return (), [Remark(Level.ERROR, "prompt_too_long", "permanent", error.message)]
    lines = tuple(
        Line(message, costs.get(message.text, 0) or count(message.text), number < turn.stable)
        for number, message in enumerate(turn.messages)
    )
    return lines, []
