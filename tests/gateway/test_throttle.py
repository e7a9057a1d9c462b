"""gateway.throttle: at once first, then gathered; never lost, never reordered."""

from __future__ import annotations

import asyncio

from gateway.throttle import Throttle


async def test_first_at_once_then_gathered() -> None:
    """The first text is given at once; what comes within the interval is given as one."""
    given: list[str] = []
    done = asyncio.Event()

    def give(text: str) -> None:
        given.append(text)
        if len(given) == 2:
            done.set()

    throttle = Throttle(give, 0.01)
    throttle.add("a")
    assert given == ["a"]
    throttle.add("b")
    throttle.add("c")
    assert given == ["a"]
    await asyncio.wait_for(done.wait(), 5)
    assert given == ["a", "bc"]


async def test_flush_gives_the_rest_now() -> None:
    """flush gives what waits, once, and leaves no timer behind."""
    given: list[str] = []
    throttle = Throttle(given.append, 60)
    throttle.add("a")
    throttle.add("b")
    throttle.flush()
    throttle.flush()
    assert given == ["a", "b"]
    throttle.add("c")
    assert given == ["a", "b", "c"]
    throttle.flush()
