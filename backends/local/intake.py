"""From turns to what the engine's loop takes: prompts are rendered here, on any thread."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import structlog

from backends.errors import BackendError, BackendErrorCode
from backends.local.commands import Prefetch
from backends.local.generation import Generation
from backends.local.prefix import Whose

if TYPE_CHECKING:
    from backends.api import Turn
    from backends.local.generation import Emit
    from backends.local.template import Prompt, Template
    from backends.local.tokenizer import Tokenizer

__all__ = ["Intake"]

log = structlog.get_logger()


class Intake:
    """Renders one turn at a time, so that the loop never waits for a tokenizer. Thread-safe."""

    def __init__(self, tokenizer: Tokenizer, template: Template, context: int) -> None:
        self._tokenizer = tokenizer
        self._template = template
        self._context = context
        self._rendering = threading.Lock()

    def generation(self, id: int, turn: Turn, emit: Emit, arrived: float) -> Generation | None:
        """The reply that is to be; None after a failure, which `emit` was told."""
        try:
            prompt = self._prompt(turn)
            return Generation(
                id,
                turn,
                prompt,
                vocabulary=self._tokenizer,
                context=self._context,
                emit=emit,
                arrived=arrived,
            )
        except BackendError as error:
            emit(error)
        except Exception:
            log.exception("prompt_failed", request=id)
            emit(BackendError(BackendErrorCode.INTERNAL, "the prompt could not be made"))
        return None

    def prefetch(self, turn: Turn) -> Prefetch | None:
        """The order to bring the turn's KV nearer; None after a failure, which is logged."""
        try:
            with self._rendering:
                prompt = self._template.render(turn)
            return Prefetch(Whose.of(turn, prompt), prompt)
        except Exception:
            log.exception("prefetch_failed")
        return None

    def _prompt(self, turn: Turn) -> Prompt:
        with self._rendering:
            prompt = self._template.render(turn)
        if not prompt.ids:
            raise BackendError(BackendErrorCode.BAD_REQUEST, "the prompt is empty")
        if len(prompt.ids) >= self._context:
            raise BackendError(
                BackendErrorCode.CONTEXT_OVERFLOW,
                f"the prompt has {len(prompt.ids)} tokens; "
                f"the context of {self._context} leaves no room for a reply",
                detail={"prompt_tokens": len(prompt.ids), "context": self._context},
            )
        return prompt
