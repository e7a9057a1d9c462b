"""The contract of this room: what a persona is, whatever card it came from.

PersonaError            root of the room
  CardError             a card that cannot be read: what, where, why
  PersonaNotFound       no persona of that id
  PromptTooLong         the permanent part alone does not fit the context
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeAlias

from backends.api import Role

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "CardError",
    "JsonValue",
    "KeyLogic",
    "LoreEntry",
    "Lorebook",
    "Note",
    "Persona",
    "PersonaError",
    "PersonaNotFound",
    "Place",
    "PromptTooLong",
]

JsonValue: TypeAlias = "bool | int | float | str | list[JsonValue] | dict[str, JsonValue] | None"


class PersonaError(Exception):
    """Root of this room's errors; `message` is one line for people."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class CardError(PersonaError):
    """A card that cannot be read. `code` is stable; `where` names the field or the byte."""

    def __init__(self, code: str, message: str, *, where: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.where = where


class PersonaNotFound(PersonaError):
    """No persona has this id. `nearest` is the closest id there is, if any is close."""

    def __init__(self, persona_id: str, nearest: str | None = None) -> None:
        hint = f"; did you mean {nearest!r}?" if nearest else ""
        super().__init__(f"no persona {persona_id!r}{hint}")
        self.persona_id = persona_id
        self.nearest = nearest


class PromptTooLong(PersonaError):
    """The part of the prompt that may not be trimmed needs `needed` tokens; `room` are there."""

    def __init__(self, needed: int, room: int) -> None:
        super().__init__(f"the prompt needs {needed} tokens and the model has room for {room}")
        self.needed = needed
        self.room = room


class KeyLogic(StrEnum):
    """What an entry's secondary keys must do besides the match of a primary one."""

    AND_ANY = "and_any"
    """At least one of them matches."""
    NOT_ALL = "not_all"
    """At least one of them does not."""
    NOT_ANY = "not_any"
    """None of them matches."""
    AND_ALL = "and_all"
    """All of them match."""


class Place(StrEnum):
    """Where an author wants an entry's text; `personas.prompt` says where it can stand."""

    BEFORE_CHAR = "before_char"
    AFTER_CHAR = "after_char"
    AFTER_DESCRIPTION = "after_desc"
    PERSONALITY = "personality"
    SCENARIO = "scenario"
    EXAMPLES = "examples"
    DEPTH = "depth"
    """So many messages before the end: `LoreEntry.depth`."""
    OUTLET = "outlet"
    """Where the text has `{{outlet::name}}`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoreEntry:
    """One entry of a lorebook: when it comes in, and what it then says.

    `id` is unique in a persona; `name` is for people. `content` has no decorators any more, its
    macros are not expanded. A key matches as a part of one message (`regex`: as an RE2 pattern;
    `/pattern/flags` is one always). `scan_depth` None is the book's. `sources` names fields of the
    persona that are searched too. Times (`sticky`, `cooldown`, `delay`) count messages.
    """

    id: str
    name: str = ""
    content: str = ""
    keys: tuple[str, ...] = ()
    secondary_keys: tuple[str, ...] = ()
    logic: KeyLogic = KeyLogic.AND_ANY
    additional_keys: tuple[str, ...] = ()
    """At least one of them must match too, whatever `logic` says (V3 decorator)."""
    exclude_keys: tuple[str, ...] = ()
    """None of them may match (V3 decorator)."""
    regex: bool = False
    case_sensitive: bool = False
    whole_words: bool = False
    scan_depth: int | None = None
    sources: tuple[str, ...] = ()

    enabled: bool = True
    constant: bool = False
    """Comes in without a key."""
    forced: bool = False
    """Comes in in any case (`@@activate`)."""
    barred: bool = False
    """Never comes in (`@@dont_activate`)."""
    probability: float = 100.0
    """In percent, drawn anew at each turn."""
    groups: tuple[str, ...] = ()
    """Of the entries of one group at most one comes in."""
    group_weight: int = 100
    group_override: bool = False
    group_scoring: bool = False
    sticky: int = 0
    """Stays for so many messages once it came in."""
    cooldown: int = 0
    """Then stays out for so many."""
    delay: int = 0
    """Not before the chat has so many."""
    after_replies: int = 0
    """Not before the chat has so many messages of the character."""
    every_replies: int = 1
    """Only when the number of the character's messages is a multiple of this."""
    once: bool = False
    """Not again after its first match."""
    keep: bool = False
    """Always from its first match on."""
    greeting: int | None = None
    """Only in a chat that began with this greeting; 0 is the first one."""

    exclude_recursion: bool = False
    """Other entries cannot bring it in."""
    prevent_recursion: bool = False
    """It cannot bring in others."""
    delay_recursion: int = 0
    """Comes in through other entries only, at this step or later; 0: no such delay."""

    order: int = 100
    """Of those that come in together, lower ones stand earlier."""
    priority: int = 0
    """When the budget is short, lower ones are cut first."""
    spare_on_limit: bool = False
    """Cut before all others (`@@ignore_on_max_context`)."""
    ignore_budget: bool = False
    place: Place = Place.BEFORE_CHAR
    depth: int = 4
    role: Role = Role.SYSTEM
    outlet: str = ""
    disables_system_prompt: bool = False
    """Our own system prompt, where the card has none, is left out (`@@disable_ui_prompt`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lorebook:
    """A book of entries. `token_budget` None: a share of the model's context."""

    name: str = ""
    entries: tuple[LoreEntry, ...] = ()
    scan_depth: int = 4
    token_budget: int | None = None
    recursive: bool = False


@dataclass(frozen=True, slots=True)
class Note:
    """A text that is wanted `depth` messages before the end; macros not yet expanded."""

    text: str
    depth: int = 4
    role: Role = Role.SYSTEM


@dataclass(frozen=True, slots=True)
class Persona:
    """A character as its author wrote it, macros not yet expanded.

    `id` is a slug, unique in a library; `revision` is a hash of the content, so a chat can stay
    with the revision it began with. `nickname`, when set, replaces `{{char}}`. `creator_notes`
    are for people and never enter a prompt. `avatar` is a file name beside the card. `lore` are
    the card's books, as they are executed. `card` is the original JSON, unknown keys included, so
    that an export loses nothing.
    """

    id: str
    revision: str
    name: str
    description: str = ""
    personality: str = ""
    scenario: str = ""
    greeting: str = ""
    alternate_greetings: tuple[str, ...] = ()
    examples: str = ""
    system_prompt: str = ""
    post_history_instructions: str = ""
    nickname: str = ""
    creator: str = ""
    creator_notes: str = ""
    character_version: str = ""
    tags: tuple[str, ...] = ()
    avatar: str | None = None
    lore: tuple[Lorebook, ...] = ()
    depth_prompt: Note | None = None
    card: Mapping[str, JsonValue] = field(default_factory=lambda: MappingProxyType({}), hash=False)

    @property
    def speaks_as(self) -> str:
        """The name that `{{char}}` stands for and that replies are signed with."""
        return self.nickname or self.name

    @property
    def tagline(self) -> str:
        """One line about the character for lists: our extension, else the notes' first line."""
        found: object = self.card.get("data", self.card)
        for key in ("extensions", "greenroom", "tagline"):
            found = found.get(key) if isinstance(found, dict) else None
        line = found if isinstance(found, str) and found.strip() else self.creator_notes
        return line.strip().partition("\n")[0].strip()
