"""`greenroom` whose script is spoken slowly to whoever asks for that, so that a test of what
happens during a reply has the time for it on any machine."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from typing import TYPE_CHECKING

from backends import scripted
from backends.api import Role
from gateway.cli import main

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from backends.api import Turn, TurnEvent

WORD = "slowly"
PAUSE = 0.25


class Patient(scripted.ScriptedBackend):
    """Waits before every word when the last message of the person has the word `slowly`."""

    async def stream(self, turn: Turn) -> AsyncGenerator[TurnEvent, None]:
        said = [m.text for m in turn.messages if m.role is Role.USER]
        pause = PAUSE if WORD in said[-1] else 0.0
        async with contextlib.aclosing(super().stream(turn)) as events:
            async for event in events:
                await asyncio.sleep(pause)
                yield event


if __name__ == "__main__":
    scripted.ScriptedBackend = Patient  # type: ignore[misc]
    sys.exit(main())
