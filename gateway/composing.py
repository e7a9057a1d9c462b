"""From a persona and what was said to the turn that a backend is asked for."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

import structlog

from personas.prompt import Budget, Plan

if TYPE_CHECKING:
    from collections.abc import Callable

    from backends.api import Sampling, Turn
    from gateway.standby import Standby
    from personas.conversation import Conversation
    from personas.persona import Persona
    from personas.prompt import Rendered

__all__ = ["TENANT", "Composer"]

log = structlog.get_logger()

TENANT = "local"
"""Everybody who can reach this server is one tenant."""


def _here() -> datetime:
    return datetime.now().astimezone()


@dataclass(frozen=True, slots=True)
class Composer:
    """Makes turns. `sampling` gives what to draw by, from what suits the model.

    `clock` is what a card's clocks tell; they only stand where nothing is cached.
    """

    sampling: Callable[[Sampling], Sampling]
    ready_seconds: float
    clock: Callable[[], datetime] = _here

    async def compose(
        self,
        standby: Standby,
        persona: Persona,
        conversation: Conversation,
        turn_id: str,
        supplement: str = "",
    ) -> Turn:
        """The turn after the conversation's head, within what the backend's model takes.

        `supplement` is a client's own system prompt; see `personas.prompt.Plan`. Waits
        `ready_seconds` for a backend that is starting. Raises `BackendError` and `PromptTooLong`.
        """
        turn, trace = await self.render(standby, persona, conversation, turn_id, supplement)
        log.debug(
            "prompt_composed",
            tokens=trace.tokens,
            lore_tokens=trace.lore_tokens,
            lore=len(trace.entries),
            left_out=trace.left_out,
            breaks=list(trace.breaks),
        )
        return turn

    async def render(
        self,
        standby: Standby,
        persona: Persona,
        conversation: Conversation,
        turn_id: str,
        supplement: str = "",
    ) -> Rendered:
        """The turn with what lore did in it; otherwise as `compose`."""
        model = await standby.ready(self.ready_seconds)
        sampling = self.sampling(model.sampling)

        def planned() -> Plan:
            return Plan(persona, conversation, supplement, self.clock())

        # A large book and a long chat that is new to this process take a while to go through.
        plan = await asyncio.to_thread(planned) if persona.lore else planned()
        costs = await standby.costs(plan.texts)
        return plan.render(
            turn_id=turn_id,
            tenant=TENANT,
            sampling=sampling,
            budget=Budget(model.context, sampling.max_tokens, costs),
        )
