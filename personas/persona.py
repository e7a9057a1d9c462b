"""The contract of this room: what a persona is, whatever card it came from.

PersonaError            root of the room
  CardError             a card that cannot be read: what, where, why
  PersonaNotFound       no persona of that id
  PromptTooLong         the permanent part alone does not fit the context
"""

from __future__ import annotations

from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "CardError",
    "JsonValue",
    "Persona",
    "PersonaError",
    "PersonaNotFound",
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


@dataclass(frozen=True, slots=True)
class Persona:
    """A character as its author wrote it, macros not yet expanded.

    `id` is a slug, unique in a library; `revision` is a hash of the content, so a chat can stay
    with the revision it began with. `nickname`, when set, replaces `{{char}}`. `creator_notes`
    are for people and never enter a prompt. `avatar` is a file name beside the card. `card` is
    the original JSON, unknown keys included, so that an export loses nothing.
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
