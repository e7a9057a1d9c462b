"""Measures the rungs of the ladder on one GPU: prefill, decode at growing batches, memory."""

from __future__ import annotations

import gc
import time
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

import torch

from backends.local.quantize import narrowed
from backends.local.synthetic import half_model, int8_model, parameter_count, synthetic_config
from benchmarks.gpu_half import HalfDecoder
from benchmarks.gpu_int8 import Pool, int8_steps, step_seconds, synchronize
from benchmarks.ladder import RUNGS, Measured, StepTime, cost

if TYPE_CHECKING:
    from collections.abc import Callable

    from backends.local.synthetic import HalfModel
    from benchmarks.ladder import Rung, Traffic

__all__ = ["Room", "measure_ladder"]

STEP_TOKENS = 256
"""What a sliding group of an int8 sequence keeps beyond its window while it is being prefilled."""


@dataclass(frozen=True, slots=True)
class Room:
    """Where the ladder is measured, and how large it may get.

    `reserve` bytes stay free for activations. `most` is the largest batch that is timed, `smallest`
    the first; each is double the one before, and the last is what the memory holds.
    """

    device: str
    reserve: int
    smallest: int
    most: int
    repeats: int
    memory: int | None = None

    def free(self) -> int:
        """Bytes that KV may take now."""
        if self.memory is not None:
            return self.memory
        self.clear()
        return torch.cuda.mem_get_info()[0] - self.reserve

    def clear(self) -> None:
        """Gives back what is no longer used."""
        gc.collect()
        if self.device != "cpu":
            torch.cuda.empty_cache()

    def batches(self, fits: int) -> list[int]:
        """The batches to time where `fits` sequences have room."""
        largest = min(fits, self.most)
        sizes = [self.smallest]
        while sizes[-1] * 2 < largest:
            sizes.append(sizes[-1] * 2)
        return sorted({*(size for size in sizes if size < largest), largest})


def measure_ladder(size: str, traffic: Traffic, room: Room) -> dict[str, object]:
    """Every rung as measured and what it costs; `total` is the first rung's cost over the last's.

    A rung that cannot run here is named in `missing` with the reason.
    """
    rows: list[dict[str, object]] = []
    missing: dict[str, str] = {}
    first: dict[bool, float] = {}
    totals: dict[bool, float] = {}
    known: dict[tuple[str, bool, bool, bool], Measured] = {}
    for rung in RUNGS:
        key = (rung.shape, rung.int8, rung.narrow, rung.cached)
        began = time.perf_counter()
        room.clear()
        try:
            if key not in known:
                if rung.int8:
                    known |= _int8(rung, size, traffic, room)
                else:
                    known[key] = _half(rung, size, traffic, room)
        except (ImportError, RuntimeError, ValueError) as error:
            missing[rung.name] = f"{type(error).__name__}: {error}"
            print(f"missing: {rung.name}: {missing[rung.name]}", flush=True)
            continue
        measured = known[key]
        costs = {even: cost(rung, measured, traffic, even=even) for even in (False, True)}
        for even, found in costs.items():
            first.setdefault(even, found.dollars_an_hour)
            totals[even] = first[even] / found.dollars_an_hour
        found = costs[False]
        rows.append(
            {
                "rung": rung.name,
                "model": f"{size}-{rung.shape}",
                "parameters": parameter_count(synthetic_config(f"{size}-{rung.shape}")),
                **asdict(measured),
                **asdict(found),
                "times_cheaper": totals[False],
                "times_cheaper_even_replies": totals[True],
                "measured_in_seconds": round(time.perf_counter() - began, 1),
            }
        )
        print(f"{rung.name}: {found} fits {measured.fits}, {totals[False]:.1f}x", flush=True)
    whole = not missing
    return {
        "size": size,
        "traffic": asdict(traffic),
        "rows": rows,
        "missing": missing,
        "total": totals.get(False) if whole else None,
        "total_even_replies": totals.get(True) if whole else None,
    }


def _half(rung: Rung, size: str, traffic: Traffic, room: Room) -> Measured:
    """A rung of the plain PyTorch decoder."""
    config = synthetic_config(f"{size}-{rung.shape}")
    dtype = torch.float32 if room.device == "cpu" else torch.float16  # slow in half on a CPU
    model = half_model(config, 1, room.device, dtype)
    # A static batch keeps room for the longest reply of every row.
    capacity = traffic.prompt + traffic.longest_reply
    each = HalfDecoder.bytes_each(config, capacity)
    fits = room.free() // each
    while fits >= 1:
        try:
            return _half_of(model, fits, each, traffic, room)
        except torch.cuda.OutOfMemoryError:
            # Large rows leave steps less than the reserve.
            fits -= max(1, fits // 16)
            room.clear()
    raise ValueError(f"the memory does not hold one conversation of {each} bytes of KV")


def _half_of(model: HalfModel, fits: int, each: int, traffic: Traffic, room: Room) -> Measured:
    """The figures of a decoder with room for `fits` conversations of `each` bytes, if they fit."""
    config = model.config
    sizes = room.batches(fits)
    decoder = HalfDecoder(model, sizes[-1], traffic.prompt + traffic.longest_reply)
    decoder.fill()
    generator = torch.Generator().manual_seed(0)
    prompt = torch.randint(config.vocab_size, (traffic.prompt,), generator=generator)
    prompt = prompt.to(room.device)
    seconds = _median(lambda: decoder.prefill(prompt, 0), room, 3)
    middle = traffic.prompt + traffic.reply // 2
    steps = []
    for batch in sizes:
        step = decoder.greedy_step(batch, middle)
        steps.append(StepTime(batch, _median(step, room, room.repeats)))
        del step
        if _hopeless(steps[-1], traffic):
            break
    return Measured(each, fits, traffic.prompt / seconds, seconds, tuple(steps))


def _int8(
    rung: Rung, size: str, traffic: Traffic, room: Room
) -> dict[tuple[str, bool, bool, bool], Measured]:
    """The int8 model, measured once for the rungs without and with a cache between turns."""
    config = synthetic_config(f"{size}-{rung.shape}")
    model = int8_model(config, 1, room.device)
    steps = int8_steps(narrowed(model) if rung.narrow else model, room.device)
    del model
    length = traffic.prompt + traffic.reply
    each = Pool.bytes_for(config, length, STEP_TOKENS)
    fits = room.free() // each
    # A few whole prompts at once, and as many tokens of turns that have their prefix.
    together = max(1, room.smallest // 8)
    cold_pool = Pool(config, together, traffic.prompt, traffic.prompt, room.device)
    cold = step_seconds(steps, cold_pool.same(together, 0, traffic.prompt), room.device, 1)
    del cold_pool
    warm_count = max(1, together * traffic.prompt // traffic.uncached)
    warm_pool = Pool(config, warm_count, traffic.prompt, traffic.uncached, room.device)
    before = traffic.prompt - traffic.uncached
    warm_batch = warm_pool.same(warm_count, before, traffic.uncached)
    warm = step_seconds(steps, warm_batch, room.device, 1) / warm_count
    del warm_pool, warm_batch
    times = []
    for batch in room.batches(fits):
        # A step's own scratch grows with the batch too, so the largest may not fit beside its KV.
        try:
            pool = Pool(config, batch, length, STEP_TOKENS, room.device)
            middle = pool.same(batch, traffic.prompt + traffic.reply // 2, 1)
            times.append(StepTime(batch, step_seconds(steps, middle, room.device, room.repeats)))
        except torch.cuda.OutOfMemoryError:
            print(f"int8: a step of {batch} sequences does not fit", flush=True)
            break
        del pool, middle
        if _hopeless(times[-1], traffic):
            break
    base = Measured(
        kv_bytes=each,
        fits=fits,
        prefill_rate=together * traffic.prompt / cold,
        prefill_seconds=cold / together,
        steps=tuple(times),
    )
    cached = replace(base, prefill_rate=traffic.uncached / warm, prefill_seconds=warm)
    kind = rung.shape, True, rung.narrow
    return {(*kind, False): base, (*kind, True): cached}


def _hopeless(step: StepTime, traffic: Traffic) -> bool:
    """Whether larger batches need no timing: they are slower still, and none may be used."""
    return step.seconds > 4 * traffic.slowest_step


def _median(call: Callable[[], object], room: Room, repeats: int) -> float:
    """Median seconds of a call, after two that do not count."""
    for _ in range(2):
        call()
    taken = []
    for _ in range(repeats):
        synchronize(room.device)
        begin = time.perf_counter()
        call()
        synchronize(room.device)
        taken.append(time.perf_counter() - begin)
    return sorted(taken)[len(taken) // 2]
