"""From a persona and what was said to the turn that a backend is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from personas.prompt import Budget, prompt_texts, render

if TYPE_CHECKING:
    from collections.abc import Callable

    from backends.api import Sampling, Turn
    from gateway.standby import Standby
    from personas.conversation import Conversation
    from personas.persona import Persona

__all__ = ["TENANT", "Composer"]

TENANT = "local"
"""Everybody who can reach this server is one tenant."""


@dataclass(frozen=True, slots=True)
class Composer:
    """Makes turns. `sampling` gives what to draw by, from what suits the model."""

    sampling: Callable[[Sampling], Sampling]
    ready_seconds: float

    async def compose(
        self,
        standby: Standby,
        persona: Persona,
        conversation: Conversation,
        turn_id: str,
        supplement: str = "",
    ) -> Turn:
        """The turn after the conversation's head, within what the backend's model takes.

        `supplement` is a client's own system prompt; see `personas.prompt.render`. Waits
        `ready_seconds` for a backend that is starting. Raises `BackendError` and `PromptTooLong`.
        """
        model = await standby.ready(self.ready_seconds)
        sampling = self.sampling(model.sampling)
        costs = await standby.costs(prompt_texts(persona, conversation, supplement))
        return render(
            persona,
            conversation,
            turn_id=turn_id,
            tenant=TENANT,
            sampling=sampling,
            budget=Budget(model.context, sampling.max_tokens, costs),
            supplement=supplement,
        )
