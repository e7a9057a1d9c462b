"""The benchmark of prompts still runs, and says what it is asked for."""

from __future__ import annotations

from argparse import Namespace

from backends.api import Message, Role
from benchmarks.prompts import Tally, run


async def test_smoke() -> None:
    """A small run has every key; ours keeps most of its tokens, the literal one does not."""
    found = await run(Namespace(smoke=True, context=4096))
    ours, naive = found["stable_share"], found["naive_share"]
    assert isinstance(ours, float)
    assert isinstance(naive, float)
    assert ours > 0.9
    assert naive < ours
    assert {"lore_scan_4000_ms", "render_180_ms", "cards"} <= found.keys()


def test_tally() -> None:
    """Cached is what two prompts have in common from their start, the reply included."""
    first = [Message(Role.SYSTEM, "aaaa"), Message(Role.USER, "bbbb")]
    second = [*first, Message(Role.ASSISTANT, "cccc"), Message(Role.USER, "dddd eeee")]
    tally = Tally()
    tally.follow([first, second], ["cccc"])
    assert (tally.tokens, tally.cached) == (13, 9)
    changed = [Message(Role.SYSTEM, "aaaa"), Message(Role.USER, "other")]
    tally = Tally()
    tally.follow([first, changed], ["cccc"])
    assert tally.cached == 4
