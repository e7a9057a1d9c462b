"""What of a prompt comes from the persona: the scene, example dialogue, notes and the tail.

The scene and the examples are permanent: the same at every turn of a chat. What changes from turn
to turn (post-history instructions that tell the time, a line with the time) is the tail.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import TYPE_CHECKING

from backends.api import Message, Role
from personas.lorebook import Active, Cause, Lore, closes
from personas.macro_clock import now_line
from personas.macros import draws, expand, tells_time
from personas.persona import LoreEntry, Place

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import datetime

    from personas.conversation import ChatMessage, Conversation
    from personas.persona import Lorebook, Persona

__all__ = ["Script", "Voice", "compiled"]

# Stands where a card has no system prompt of its own: an order to a model that takes orders, and
# the first sentences of a story to one that only continues text.
_SYSTEM_PROMPT = (
    "This is a conversation between {{user}} and {{char}}. {{char}} stays in character and answers "
    "{{user}} in one to three short, vivid sentences."
)
# Between the examples and the chat. Once only: a model that continues text takes a line that comes
# back every few lines for something to be said.
_BEGINNING = "A new conversation begins."

_NOTHING: Mapping[str, str] = MappingProxyType({})
_USUAL_LINE = "It is Wednesday, 30 September 2000, 00:00."
_START = re.compile(r"<START>", re.IGNORECASE)


class Voice:
    """Expands texts of a persona for one chat: `user` speaks with it, `seed` is the chat's id.

    With no seed the texts are a preview: what a chat would draw is "…". Variables that the
    permanent texts set can be read everywhere; what others set ends with their text.
    """

    def __init__(self, persona: Persona, user: str, seed: str | None, about_user: str = "") -> None:
        self.persona = persona
        self.char = persona.speaks_as
        self.user = user.strip() or "You"
        self._seed = seed
        self._variables: dict[str, str] = {}
        self._values = _Values(self, about_user)

    def permanent(self, text: str, more: Mapping[str, str] = _NOTHING) -> str:
        """A text that is evaluated once in a chat, before any other."""
        return self._expand(text, more, self._variables)

    def __call__(
        self,
        text: str,
        more: Mapping[str, str] = _NOTHING,
        *,
        now: datetime | None = None,
        scan: bool = False,
    ) -> str:
        """Any other text. `more` are further macros; see `personas.macros.expand`."""
        return self._expand(text, more, dict(self._variables), now, scan)

    def _expand(
        self,
        text: str,
        more: Mapping[str, str],
        variables: dict[str, str],
        now: datetime | None = None,
        scan: bool = False,
    ) -> str:
        values = _Layered(more, self._values) if more else self._values
        seed = self._seed
        return expand(text, values, seed=seed, variables=variables, now=now, scan=scan).strip()


class _Values(Mapping[str, str]):
    """The macros that stand for a text; a field of the persona is expanded when it is asked for."""

    def __init__(self, voice: Voice, about_user: str) -> None:
        persona = voice.persona
        self._known = {
            "char": voice.char,
            "user": voice.user,
            "charversion": persona.character_version,
            "original": "",
        }
        self._seed = voice._seed
        self._fields = {
            "description": persona.description,
            "personality": persona.personality,
            "scenario": persona.scenario,
            "persona": about_user,
            "mesexamples": persona.examples,
            "charprompt": persona.system_prompt,
            "charinstruction": persona.post_history_instructions,
            "chardepthprompt": persona.depth_prompt.text if persona.depth_prompt else "",
        }

    def __getitem__(self, name: str) -> str:
        if name not in self._known:
            field = self._fields[name]
            # A field inside a field stays as it is written: there is no end to it otherwise.
            known = {key: self._known[key] for key in ("char", "user", "charversion")}
            self._known[name] = expand(field, known, seed=self._seed).strip()
        return self._known[name]

    def __iter__(self) -> Iterator[str]:
        return iter({**self._known, **self._fields})

    def __len__(self) -> int:
        return len({**self._known, **self._fields})


class _Layered(Mapping[str, str]):
    """Some values over others, none of them copied."""

    def __init__(self, above: Mapping[str, str], below: Mapping[str, str]) -> None:
        self._above = above
        self._below = below

    def __getitem__(self, name: str) -> str:
        return self._above[name] if name in self._above else self._below[name]

    def __iter__(self) -> Iterator[str]:
        return iter({**self._below, **self._above})

    def __len__(self) -> int:
        return len({**self._below, **self._above})


@dataclass(frozen=True, slots=True)
class _Identity:
    """Books as a key by which object they are: comparing thousands of entries costs too much."""

    books: tuple[Lorebook, ...]

    def __hash__(self) -> int:
        return id(self.books)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Identity) and other.books is self.books


@lru_cache(maxsize=64)
def _compiled(key: _Identity, names: tuple[str, str] | None) -> Lore:
    return Lore(key.books, {"char": names[0], "user": names[1]} if names else None)


def compiled(persona: Persona, user: str) -> Lore:
    """The persona's books, compiled; the same object as long as it is asked for."""
    lore = _compiled(_Identity(persona.lore), None)
    if lore.asks_names:
        return _compiled(_Identity(persona.lore), (persona.speaks_as, user))
    return lore


class Script:
    """A persona's part of the prompts of one chat.

    `examples`, `about` (who the user is) and `tail` are messages; `scene` makes the first one of
    the `permanent` lore that there is room for. `usual_tail` is the tail with no time and no chat
    in it: by its length the history is trimmed, so that a minute more changes nothing there.
    `notes` are wanted near the end of the history, `closing` are the tail's entries. `shared` says
    of the scene and of the examples whether they are the same in every chat with a user of this
    name.
    """

    def __init__(
        self,
        persona: Persona,
        conversation: Conversation,
        supplement: str,
        history: Sequence[ChatMessage],
        now: datetime | None,
    ) -> None:
        self.voice = voice = Voice(
            persona, conversation.user, conversation.id, conversation.about_user.strip()
        )
        self.lore = compiled(persona, voice.user)
        standing = [active for active in self.lore.permanent if not closes(active.entry)]
        self._outlets = _outlets(standing, voice)
        disabled = any(active.entry.disables_system_prompt for active in standing)
        self._system_prompt = self._make_system_prompt(supplement.strip(), disabled)
        self._description = self._fill(persona.description)
        self._personality = self._fill(persona.personality)
        self._scenario = self._fill(persona.scenario)
        self.examples = _examples(self)
        self.permanent = tuple((active, voice(active.entry.content)) for active in standing)
        about = voice(conversation.about_user)
        self.about = (Message(Role.SYSTEM, f"{voice.user}: {about}"),) if about else ()
        self.notes = tuple(_notes(persona, conversation))
        told = now is not None and self._tells_time()
        last = _last_messages(history)
        self.closing = self._close(now, last)
        self.tail = self._make_tail(now, now_line(now) if told and now else "", last)
        self.usual_tail = self._make_tail(None, _USUAL_LINE if told else "", _NOTHING)
        self.shared = self._shared(supplement)

    def scene(self, kept: Sequence[tuple[Active, str]]) -> Message:
        """The first message: one only, for some templates have room for no second one."""

        def lore(*places: Place) -> list[str]:
            return [text for active, text in kept if active.entry.place in places]

        char = self.voice.char
        paragraphs = [
            self._system_prompt,
            *lore(Place.BEFORE_CHAR),
            self._description,
            *lore(Place.AFTER_DESCRIPTION),
            _labelled(f"{char}'s personality", self._personality),
            *lore(Place.PERSONALITY),
            _labelled("The scene", self._scenario),
            *lore(Place.SCENARIO),
            *lore(Place.AFTER_CHAR),
        ]
        return Message(Role.SYSTEM, "\n\n".join(filter(None, paragraphs)))

    def _fill(self, text: str) -> str:
        return self.voice.permanent(text, self._outlets)

    def _make_system_prompt(self, supplement: str, disabled: bool) -> str:
        voice, written = self.voice, self.voice.persona.system_prompt
        default = "" if disabled else voice.permanent(_SYSTEM_PROMPT)
        supplemented = {**self._outlets, "original": supplement}
        if voice(written, supplemented) != voice(written, self._outlets):
            return voice.permanent(written, supplemented)  # the card has the place for it
        own = voice.permanent(written, {**self._outlets, "original": default})
        return "\n\n".join(filter(None, (own or default, supplement)))

    def _close(self, now: datetime | None, last: Mapping[str, str]) -> list[tuple[Active, Message]]:
        """Entries and notes that want to be the last word."""
        found = (a for a in (*self.lore.permanent, *self.notes) if closes(a.entry))
        filled = ((active, self.voice(active.entry.content, last, now=now)) for active in found)
        return [(active, self.message(active.entry.role, text)) for active, text in filled if text]

    def _make_tail(
        self, now: datetime | None, line: str, last: Mapping[str, str]
    ) -> tuple[Message, ...]:
        """The last messages: the time, if anybody asks for it, closing entries, instructions."""
        written = self.voice(self.voice.persona.post_history_instructions, last, now=now)
        return (
            *((Message(Role.SYSTEM, line),) if line else ()),
            *(message for _, message in self._close(now, last)),
            *((Message(Role.SYSTEM, written),) if written else ()),
        )

    def _tells_time(self) -> bool:
        """Whether a text outside the tail asks for the time, which can only be told there."""
        persona = self.voice.persona
        texts = [persona.system_prompt, persona.description, persona.personality, persona.scenario]
        texts += [persona.examples, *(note.entry.content for note in self.notes)]
        return self.lore.tells_time or any(map(tells_time, texts))

    def message(self, role: Role, text: str) -> Message:
        """A message that nobody said, with the name of whom it speaks for."""
        names = {Role.ASSISTANT: self.voice.char, Role.USER: self.voice.user}
        return Message(role, text, names.get(role))

    def _shared(self, supplement: str) -> tuple[bool, bool]:
        persona = self.voice.persona
        scene = [persona.system_prompt, persona.description, persona.personality, persona.scenario]
        scene += [active.entry.content for active, _ in self.permanent]
        return (
            not supplement.strip() and not any(map(_personal, scene)),
            not _personal(persona.examples),
        )


_PERSONAL = re.compile(r"\{\{\s*(?:if\b[\s:!]*)?(?:persona|getvar|getglobalvar)\b", re.IGNORECASE)


def _personal(text: str) -> bool:
    """Whether a permanent text may differ between chats."""
    return draws(text) or _PERSONAL.search(text) is not None


def _outlets(standing: Sequence[Active], voice: Voice) -> dict[str, str]:
    """The macros `{{outlet::name}}`, each with the texts that entries put there."""
    outlets: dict[str, list[str]] = {}
    for active in standing:
        if active.entry.place is Place.OUTLET:
            name = f"outlet::{active.entry.outlet.strip().lower()}"
            outlets.setdefault(name, []).append(voice(active.entry.content))
    return {name: "\n".join(texts) for name, texts in outlets.items()}


def _notes(persona: Persona, conversation: Conversation) -> Iterator[Active]:
    """The card's depth prompt and the chat's note, as entries that are always there."""
    for name, note in (("depth_prompt", persona.depth_prompt), ("note", conversation.note)):
        if note is not None and note.text.strip():
            entry = LoreEntry(
                id=name,
                name="the card's note" if name == "depth_prompt" else "the author's note",
                content=note.text,
                constant=True,
                ignore_budget=True,
                place=Place.DEPTH,
                depth=note.depth,
                role=note.role,
            )
            yield Active(entry, -1, Cause.CONSTANT)


def _last_messages(history: Sequence[ChatMessage]) -> dict[str, str]:
    last = {"lastmessage": history[-1].text} if history else {}
    for name, role in (("lastusermessage", Role.USER), ("lastcharmessage", Role.ASSISTANT)):
        found = next((said.text for said in reversed(history) if said.role is role), None)
        if found is not None:
            last[name] = found
    return last


def _labelled(label: str, text: str) -> str:
    return f"{label}: {text}" if text else ""


def _examples(script: Script) -> tuple[Message, ...]:
    """The example dialogue as messages, set apart from the conversation that follows."""
    speakers = _speakers(script.voice)
    messages: list[Message] = []
    for block in _START.split(script.voice.persona.examples):
        messages += _block(block, speakers, script)
    if messages:
        messages.append(Message(Role.SYSTEM, _BEGINNING))
    return tuple(messages)


def _block(block: str, speakers: re.Pattern[str], script: Script) -> list[Message]:
    """A speaker's line opens a message, further lines belong to it; text before is narration."""
    spoken: list[tuple[Role, list[str]]] = []
    for line in block.splitlines():
        found = speakers.match(line)
        if found is not None:
            role = Role.ASSISTANT if found["char"] is not None else Role.USER
            spoken.append((role, [line[found.end() :]]))
        elif spoken:
            spoken[-1][1].append(line)
        else:
            spoken.append((Role.SYSTEM, [line]))
    filled = ((role, script._fill("\n".join(lines))) for role, lines in spoken)
    return [script.message(role, text) for role, text in filled if text]


def _speakers(voice: Voice) -> re.Pattern[str]:
    """Matches `{{char}}:`, `<USER>:`, the names themselves and the like at a line's start."""
    char = "|".join(re.escape(name) for name in dict.fromkeys((voice.char, voice.persona.name)))
    user = re.escape(voice.user)
    return re.compile(
        rf"\s*(?:(?P<char>\{{\{{\s*char\s*\}}\}}|<BOT>|<CHAR>|{char})"
        rf"|(?:\{{\{{\s*user\s*\}}\}}|<USER>|{user}))\s*:\s*",
        re.IGNORECASE,
    )
