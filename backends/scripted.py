"""A backend with no model: it speaks lines from a script, word by word.

It ships: `greenroom run --backend scripted` shows the whole product without weights, and tests use
its faults to see what people see when a real backend fails.
"""

from __future__ import annotations

import asyncio
import re
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from backends.api import (
    BackendState,
    BackendStatus,
    Capabilities,
    Finished,
    FinishReason,
    Role,
    TextDelta,
    Timings,
    Usage,
)
from backends.errors import BackendError, BackendErrorCode
from backends.stateless import Stateless

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from backends.api import Turn, TurnEvent

__all__ = ["Script", "ScriptedBackend"]

LINES = (
    "The kettle is on and nobody has tripped over the cat yet, so I call it a good evening. "
    "Sit down. What kept you so late?",
    "Now that is a longer story than it looks. Give me the part you left out.",
    "I thought as much. You may stay until the rain stops, but you tell it from the beginning.",
    "Hm. I would have done the same, and regretted it just as slowly. What happens next?",
)


@dataclass(frozen=True, slots=True)
class Script:
    """What to say and how to fail.

    The n-th reply of a conversation is `lines[n % len(lines)]`, `delay` seconds between words.
    After `fail_after` words (None: never) the stream raises `failure`. `context` limits the
    prompt, counted in words.
    """

    lines: tuple[str, ...] = LINES
    delay: float = 0.04
    fail_after: int | None = None
    failure: BackendErrorCode = BackendErrorCode.CUT
    context: int = 100_000

    def __post_init__(self) -> None:
        if not self.lines:
            raise ValueError("script.lines must not be empty")
        if self.delay < 0:
            raise ValueError(f"script.delay must not be negative: {self.delay}")


def words(text: str) -> list[str]:
    """Splits into words, each with the space before it, so that joining gives the text back."""
    return re.findall(r"\s*\S+|\s+$", text)


class ScriptedBackend(Stateless):
    """Implements `backends.api.Backend`. `live` counts streams that are open now."""

    name = "scripted"

    def __init__(self, script: Script | None = None) -> None:
        self._script = script or Script()
        self._closed = False
        self.live = 0

    async def start(self) -> Capabilities:
        self._refuse_when_closed()
        return Capabilities(model="scripted", context=self._script.context)

    def status(self) -> BackendStatus:
        if self._closed:
            return BackendStatus(BackendState.DOWN, "closed")
        return BackendStatus(BackendState.READY, "speaks from a script; no model")

    async def stream(self, turn: Turn) -> AsyncGenerator[TurnEvent, None]:
        self._refuse_when_closed()
        script = self._script
        began = time.perf_counter()
        prompt_tokens = sum(await self.count([m.text for m in turn.messages]))
        if prompt_tokens >= script.context:
            raise BackendError(
                BackendErrorCode.CONTEXT_OVERFLOW,
                f"the prompt has {prompt_tokens} tokens, the context {script.context}",
                detail={"prompt_tokens": prompt_tokens, "context": script.context},
            )
        asked = sum(1 for m in turn.messages if m.role is Role.USER)
        line = script.lines[max(0, asked - 1) % len(script.lines)]
        stops = [line.index(stop) for stop in turn.sampling.stop if stop in line]
        reply = words(line[: min(stops, default=len(line))])
        cut = turn.sampling.max_tokens < len(reply)
        reply = reply[: turn.sampling.max_tokens]
        first: float | None = None
        self.live += 1
        try:
            for spoken, word in enumerate(reply):
                self._refuse_when_closed()
                if spoken == script.fail_after:
                    raise BackendError(script.failure, "the script says to fail here")
                await asyncio.sleep(script.delay)
                first = first or time.perf_counter()
                yield TextDelta(word)
            if script.fail_after is not None and script.fail_after >= len(reply):
                raise BackendError(script.failure, "the script says to fail at the end")
        finally:
            self.live -= 1
        now = time.perf_counter()
        first = first or now
        yield Finished(
            FinishReason.LENGTH if cut else FinishReason.COMPLETE,
            Usage(prompt_tokens=prompt_tokens, completion_tokens=len(reply)),
            Timings(ttft_ms=(first - began) * 1e3, decode_ms=(now - first) * 1e3),
        )

    async def count(self, texts: Sequence[str]) -> tuple[int, ...]:
        return tuple(len(text.split()) + 1 for text in texts)

    async def aclose(self) -> None:
        self._closed = True

    def _refuse_when_closed(self) -> None:
        if self._closed:
            raise BackendError(BackendErrorCode.UNAVAILABLE, "the backend is closed")
