"""The ladder's arithmetic: rungs, schedules and what a conversation-hour costs. Pure.

A rung is a way to serve one conversation shape. What the GPU was measured at (`Measured`) and the
traffic (`Traffic`) give seconds of GPU a turn, conversations a GPU and their cost.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["RUNGS", "Cost", "Measured", "Rung", "StepTime", "Traffic", "cost", "replies"]

Shape = Literal["mha", "mqa", "local", "cai"]


@dataclass(frozen=True, slots=True)
class Rung:
    """One step of the ladder; each has what the one before has and one technique more.

    `int8`: weights and KV, and activations, with wide codes behind the gate or, when `narrow`, of
    8 bits.
    """

    name: str
    shape: Shape
    int8: bool = False
    narrow: bool = False
    cached: bool = False
    continuous: bool = False


RUNGS = (
    Rung("2022: MHA, fp16, no cache, static batches", "mha"),
    Rung("+ multi-query attention", "mqa"),
    Rung("+ local horizons", "local"),
    Rung("+ shared KV", "cai"),
    Rung("+ int8 weights and KV", "cai", int8=True),
    Rung("+ int8 activations", "cai", int8=True, narrow=True),
    Rung("+ cache between turns", "cai", int8=True, narrow=True, cached=True),
    Rung("+ continuous batching", "cai", int8=True, narrow=True, cached=True, continuous=True),
)


@dataclass(frozen=True, slots=True)
class Traffic:
    """What conversations ask for, and what a GPU costs.

    A turn sends `prompt` tokens, of which `cached_share` are those of the turn before, and gets
    `reply` tokens on average, `longest_reply` at most. `slowest_step` (seconds) bounds the time
    between two tokens of a stream: no larger batch is run.
    """

    prompt: int = 5600
    reply: int = 140
    longest_reply: int = 512
    cached_share: float = 0.95
    turns_an_hour: float = 110.0
    price_an_hour: float = 2.5
    slowest_step: float = 0.1

    @property
    def uncached(self) -> int:
        """Prompt tokens that a cache between turns leaves to compute."""
        return self.prompt - round(self.prompt * self.cached_share)


@dataclass(frozen=True, slots=True)
class StepTime:
    """A decode step of `batch` sequences in the middle of their replies, in seconds."""

    batch: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Measured:
    """What one rung was measured at.

    `kv_bytes` is the KV of one conversation, `fits` how many the memory holds beside the weights.
    `prefill_seconds` is the time of the prompt tokens that one turn computes, `prefill_rate` its
    tokens a second.
    """

    kv_bytes: int
    fits: int
    prefill_rate: float
    prefill_seconds: float
    steps: tuple[StepTime, ...]


@dataclass(frozen=True, slots=True)
class Cost:
    """What a rung comes to.

    `batch` is the one of the measured batches that is cheapest within `slowest_step`; the GPU
    spends `turn_seconds` on a turn. `served` conversations of `turns_an_hour` keep it busy; one of
    them costs `dollars_an_hour`.
    """

    batch: int
    step_seconds: float
    turn_seconds: float
    served: float
    dollars_an_hour: float


def cost(rung: Rung, measured: Measured, traffic: Traffic, *, even: bool = False) -> Cost:
    """The cost of a conversation-hour on a GPU that is kept busy.

    A static batch runs until its longest reply ends; a continuous one gives each freed place to
    the next turn at once. With a cache between turns a GPU holds no more conversations than fit.
    `even`: every reply is exactly as long as the mean.
    """
    chances = replies(traffic.reply, traffic.reply if even else traffic.longest_reply)
    best: Cost | None = None
    for step in sorted(measured.steps, key=lambda s: s.batch):
        if best is not None and step.seconds > traffic.slowest_step:
            continue
        count = traffic.reply if rung.continuous else _longest(chances, step.batch)
        seconds = measured.prefill_seconds + count * step.seconds / step.batch
        served = 3600 / (traffic.turns_an_hour * seconds)
        if rung.cached:
            served = min(served, measured.fits)
        dollars = traffic.price_an_hour / served
        if best is None or dollars < best.dollars_an_hour:
            best = Cost(step.batch, step.seconds, seconds, served, dollars)
    if best is None:
        raise ValueError(f"no decode step was measured for {rung.name!r}")
    return best


def replies(mean: int, longest: int) -> list[float]:
    """Chances that a reply has 1, 2 … `longest` tokens: geometric, cut off, with this mean."""
    if longest == mean:
        return [0.0] * (mean - 1) + [1.0]
    if not 1 < mean < (longest + 1) / 2:
        raise ValueError(f"a mean of {mean} tokens does not suit replies of up to {longest}")
    low, high = 0.0, 1.0  # the chance of one token more, if there were no longest
    for _ in range(60):
        more = (low + high) / 2
        weights = [more**n for n in range(longest)]
        found = sum((n + 1) * w for n, w in enumerate(weights)) / sum(weights)
        low, high = (more, high) if found < mean else (low, more)
    total = sum(weights)
    return [w / total for w in weights]


def _longest(chances: list[float], batch: int) -> float:
    """The mean of the longest of `batch` replies."""
    below, expected = 0.0, 0.0
    for chance in chances:
        expected += 1 - min(1.0, below) ** batch
        below += chance
    return expected
