"""The conformance suite of `backends.api.Backend`. It ships, so that third parties run it too.

An implementation's test file subclasses `BackendContract` and gives a `backend` fixture: a backend
that is not started yet and that answers `turn()` with at least two words.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from backends.api import (
    Backend,
    BackendState,
    Finished,
    Message,
    Role,
    Sampling,
    TextDelta,
    Turn,
    TurnEvent,
)
from backends.errors import BackendError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

__all__ = ["BackendContract", "speak", "turn"]

CLOSE_WITHIN = 5.0
"""Seconds within which closing a stream must return."""


def turn(
    text: str = "Who are you?", *, id: str = "turn-1", sampling: Sampling | None = None
) -> Turn:
    """A small turn that any backend can speak."""
    return Turn(
        id=id,
        messages=(
            Message(Role.SYSTEM, "Mira keeps the lighthouse. She is dry and kind."),
            Message(Role.ASSISTANT, "Mind the third step.", "Mira"),
            Message(Role.USER, text, "You"),
        ),
        speaker="Mira",
        stable=3,
        sampling=sampling or Sampling(temperature=0.0, max_tokens=24),
        conversation=f"chat of {id}",
    )


async def speak(stream: AsyncGenerator[TurnEvent, None]) -> tuple[str, list[TurnEvent]]:
    """Reads a stream to its end: the text it spoke, and all its events."""
    events = [event async for event in stream]
    return "".join(e.text for e in events if isinstance(e, TextDelta)), events


class BackendContract:
    """The laws; every test is one of them."""

    async def test_start_is_idempotent(self, backend: Backend) -> None:
        """start twice gives the same capabilities and a ready backend."""
        first = await backend.start()
        assert await backend.start() == first
        assert first.context > 0
        assert backend.status().state is BackendState.READY

    async def test_one_finished_last(self, backend: Backend) -> None:
        """A stream has text, then exactly one Finished, last, with counts that add up."""
        await backend.start()
        text, events = await speak(backend.stream(turn()))
        assert text
        finished = [e for e in events if isinstance(e, Finished)]
        assert len(finished) == 1
        assert events[-1] is finished[0]
        usage = finished[0].usage
        assert usage.completion_tokens >= 1
        assert usage.prompt_tokens >= usage.cached_tokens
        assert sum(n for _, n in usage.cached_by_tier) == usage.cached_tokens

    async def test_nothing_before_first_iteration(self, backend: Backend) -> None:
        """A stream that is made and never iterated costs nothing and closes at once."""
        await backend.start()
        stream = backend.stream(turn())
        await asyncio.wait_for(stream.aclose(), CLOSE_WITHIN)
        assert [e async for e in stream] == []

    async def test_close_is_cancel(self, backend: Backend) -> None:
        """Closing after the first text returns within a bound, and the next turn works."""
        await backend.start()
        stream = backend.stream(turn(sampling=Sampling(temperature=0.0, max_tokens=2000)))
        async for event in stream:
            assert isinstance(event, TextDelta)
            break
        await asyncio.wait_for(stream.aclose(), CLOSE_WITHIN)
        text, _ = await speak(backend.stream(turn(id="turn-2")))
        assert text

    async def test_cancelled_task_is_cancel(self, backend: Backend) -> None:
        """Cancelling the task that reads a stream ends within a bound, as CancelledError."""
        await backend.start()
        task = asyncio.create_task(
            speak(backend.stream(turn(sampling=Sampling(temperature=0.0, max_tokens=2000))))
        )
        await asyncio.sleep(0.05)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait_for(task, CLOSE_WITHIN)
        assert task.done()
        text, _ = await speak(backend.stream(turn(id="turn-2")))
        assert text

    async def test_streams_side_by_side(self, backend: Backend) -> None:
        """Four turns at once all finish, each as it would alone (greedy)."""
        await backend.start()
        alone, _ = await speak(backend.stream(turn(id="alone")))
        together = await asyncio.gather(
            *(speak(backend.stream(turn(id=f"turn-{i}"))) for i in range(4))
        )
        assert [text for text, _ in together] == [alone] * 4

    async def test_max_tokens(self, backend: Backend) -> None:
        """max_tokens bounds the reply."""
        await backend.start()
        sampling = Sampling(temperature=0.0, max_tokens=1)
        _, events = await speak(backend.stream(turn(sampling=sampling)))
        last = events[-1]
        assert isinstance(last, Finished)
        assert last.usage.completion_tokens == 1

    async def test_count(self, backend: Backend) -> None:
        """count gives one positive cost per text, more for more text, nothing for nothing."""
        await backend.start()
        short, long = await backend.count(["one", "one two three four five six seven"])
        assert 0 < short < long
        assert await backend.count([]) == ()

    async def test_hints_change_no_reply(self, backend: Backend) -> None:
        """Prefetch and retire return, also of a chat nobody knows, and the reply is the same."""
        await backend.start()
        before, _ = await speak(backend.stream(turn()))
        async with asyncio.timeout(CLOSE_WITHIN):
            await backend.prefetch(turn("And then?"))
            await backend.prefetch(turn(id="unknown"))
            await backend.retire(turn().tenant, turn().conversation)
            await backend.retire(turn().tenant, "nobody's")
        after, _ = await speak(backend.stream(turn()))
        assert after == before

    async def test_hints_never_raise(self, backend: Backend) -> None:
        """Not before the start, and not after the end."""
        await backend.prefetch(turn())
        await backend.retire(turn().tenant, turn().conversation)
        await backend.start()
        await backend.aclose()
        await backend.prefetch(turn())
        await backend.retire(turn().tenant, turn().conversation)

    async def test_forgotten_is_gone(self, backend: Backend) -> None:
        """What was deleted of an owner is not found a second time, and the chat can go on."""
        await backend.start()
        before, _ = await speak(backend.stream(turn()))
        owner = f"conversation:{turn().conversation}"
        assert await backend.forget(turn().tenant, owner) >= 0
        assert await backend.forget(turn().tenant, owner) == 0
        after, _ = await speak(backend.stream(turn()))
        assert after == before
        assert await backend.forget(turn().tenant, None) >= 0
        assert await backend.forget(turn().tenant, None) == 0

    async def test_aclose_ends_it(self, backend: Backend) -> None:
        """After aclose (twice) a turn is refused with a BackendError and status says down."""
        await backend.start()
        await backend.aclose()
        await backend.aclose()
        assert backend.status().state is BackendState.DOWN
        refused = False
        try:
            await speak(backend.stream(turn()))
        except BackendError:
            refused = True
        assert refused

    async def test_aclose_ends_live_streams(self, backend: Backend) -> None:
        """aclose during a reply ends the stream with a BackendError within a bound."""
        await backend.start()
        stream = backend.stream(turn(sampling=Sampling(temperature=0.0, max_tokens=2000)))
        await anext(stream)
        await backend.aclose()
        failed = False
        try:
            async with asyncio.timeout(CLOSE_WITHIN):
                last = [e async for e in stream][-1]
        except BackendError:
            failed = True
        else:
            # A reply that was already whole may still end well.
            failed = isinstance(last, Finished)
        assert failed
