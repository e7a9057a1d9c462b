"""What other threads ask of the engine's loop. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from backends.local.generation import Generation

if TYPE_CHECKING:
    from collections.abc import Callable

    from backends.local.prefix import Whose
    from backends.local.template import Prompt

    Done = Callable[[int, str], None]

__all__ = ["Cancel", "Command", "Forget", "Prefetch", "Retire", "Stop"]


@dataclass(frozen=True, slots=True)
class Cancel:
    """Ends a turn."""

    id: int


@dataclass(frozen=True, slots=True)
class Prefetch:
    """This prompt, or more, will be asked for soon."""

    whose: Whose
    prompt: Prompt


@dataclass(frozen=True, slots=True)
class Retire:
    """Nobody will speak in this conversation soon."""

    tenant: str
    conversation: str


@dataclass(frozen=True, slots=True)
class Forget:
    """Deletes an owner's KV, or a tenant's; `done` hears of it."""

    tenant: str
    owner: str | None
    done: Done


class Stop:
    """Ends the loop."""


Command = Generation | Cancel | Prefetch | Retire | Forget | Stop
