"""The sampler: microseconds a row, ours in C++, in numpy and on a GPU, beside transformers'."""

from __future__ import annotations

import tempfile
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from backends.api import Sampling
from backends.local.kernels import cpu
from backends.local.kernels.draws import draw_rows as in_cpp
from backends.local.profile import PROFILES
from backends.local.sampling import Draw, Sampler
from backends.local.sampling import draw_rows as in_numpy

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from backends.local.gpu.draws import DeviceDraws

    Way = Callable[[Tensor], object]

SETTINGS = {
    "greedy": Sampling(temperature=0.0),
    "gemma_base": PROFILES["gemma-base"].sampling,
    "gemma_turns": PROFILES["gemma-turns"].sampling,
    "top_p": Sampling(temperature=0.8, top_p=0.95),
    "top_k_40": Sampling(temperature=0.8, top_k=40, top_p=1.0),
}
PROMPT = range(0, 12_000, 12)
"""A thousand ids that the penalty counts."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rows", type=int, default=16, help="streams of a step on the CPU")
    parser.add_argument("--device-rows", type=int, default=256, help="the same on a GPU")


async def run(args: argparse.Namespace) -> dict[str, object]:
    """The best of repeats that take turns; each way draws from the same rows, all at once.

    `us_per_row` by vocabulary, settings and way; `ratios`: the peer's time over ours.
    """
    sizes, repeats = ((2_048,), 2) if args.smoke else ((262_144, 49_152), 15)
    places = {"cpu": 3 if args.smoke else args.rows}
    if torch.cuda.is_available():
        places["cuda"] = args.device_rows
    with tempfile.TemporaryDirectory() as folder:
        kernels = cpu.build(Path(folder))
    found: dict[str, dict[str, dict[str, float]]] = {}
    fetched = 0
    for size in sizes:
        rows = {place: zipf(count, size).to(place) for place, count in places.items()}
        for name, sampling in SETTINGS.items():
            times: dict[str, float] = {}
            for place, count in places.items():
                draws: list[Draw | None] = [
                    Sampler(sampling, [i for i in PROMPT if i < size]).ask()[0]
                    for _ in range(count)
                ]
                ways: dict[str, Way] = {f"transformers_{place}": peer(sampling, size, count, place)}
                if place == "cuda":
                    from backends.local.gpu.draws import DeviceDraws  # needs triton

                    device = DeviceDraws()
                    ways["ours_cuda"] = partial(on_device, device, draws=draws)
                else:
                    ways["ours_numpy"] = partial(on_host, draws=draws)
                    if kernels is not None:
                        ways["ours_cpu"] = partial(in_cpp, kernels, draws=draws)
                times |= measured(ways, rows[place], repeats)
                if place == "cuda":
                    fetched += device.fetched
            found.setdefault(str(size), {})[name] = times
    return {
        "us_per_row": found,
        "ratios": {
            f"{size}_{name}_{place}": round(
                times[f"transformers_{place}"] / times[f"ours_{place}"], 2
            )
            for size, by_name in found.items()
            for name, times in by_name.items()
            for place in places
            if f"ours_{place}" in times
        },
        "rows": places,
        "rows_fetched_whole": fetched,
        "threads": torch.get_num_threads(),
    }


def zipf(count: int, size: int) -> Tensor:
    """Rows of logits whose probabilities fall by a power of the rank, as words' do, with noise."""
    random = np.random.default_rng(1)
    ranks = np.stack([random.permutation(size) for _ in range(count)])
    noise = random.standard_normal((count, size))
    return torch.from_numpy((-1.3 * np.log1p(ranks) + 0.3 * noise).astype(np.float32))


def on_device(device: DeviceDraws, rows: Tensor, draws: Sequence[Draw | None]) -> list[int | None]:
    return device.begin(rows, draws)()


def on_host(rows: Tensor, draws: Sequence[Draw | None]) -> list[int | None]:
    return in_numpy(rows.numpy(), draws)


def peer(sampling: Sampling, size: int, count: int, device: str) -> Way:
    """transformers' own processors in their order, then softmax and multinomial, or argmax."""
    import transformers

    steps = transformers.LogitsProcessorList()
    if sampling.repetition_penalty != 1.0:
        steps.append(transformers.RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
    if sampling.temperature:
        steps.append(transformers.TemperatureLogitsWarper(sampling.temperature))
        if sampling.top_k:
            steps.append(transformers.TopKLogitsWarper(sampling.top_k))
        if sampling.top_p < 1.0:
            steps.append(transformers.TopPLogitsWarper(sampling.top_p))
        if sampling.min_p:
            steps.append(transformers.MinPLogitsWarper(sampling.min_p))
    ids = torch.tensor([i for i in PROMPT if i < size], device=device).repeat(count, 1)

    def drawn(rows: Tensor) -> list[int]:
        scores = steps(ids, rows)
        if not sampling.temperature:
            return list(scores.argmax(-1).tolist())
        return list(torch.multinomial(scores.softmax(-1), 1)[:, 0].tolist())

    return drawn


def measured(ways: dict[str, Way], logits: Tensor, repeats: int) -> dict[str, float]:
    """Microseconds a row, on fresh copies: the least of them, since others share the machine."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            rows = logits.clone()
            if rows.is_cuda:
                torch.cuda.synchronize()
            began = time.perf_counter()
            way(rows)
            times[name].append(time.perf_counter() - began)
    return {name: round(min(took) / len(logits) * 1e6, 1) for name, took in times.items()}
