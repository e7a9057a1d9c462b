"""Many conversations at once on gemma-3-270m's shape: tokens a second, time to first token.

Every conversation asks at once. Here is a plain loop over `GpuSteps`: a batch of prompts,
a decode step of all running streams, and again, so that no stream waits for more than one batch of
prompts. `benchmarks.gpu_engine` puts the whole engine around the same steps. transformers'
continuous batching runs in a process of its own, on random weights of the same shape.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from backends.local.synthetic import int8_model, synthetic_config
from benchmarks.gpu_int8 import Pool, best_tokens, int8_steps

if TYPE_CHECKING:
    from backends.local.kernels.batch import Steps

__all__ = ["Served", "Shape", "serve_peer", "serve_steps", "summary"]

PEER = Path(__file__).parent / "peer_transformers.py"


@dataclass(frozen=True, slots=True)
class Shape:
    """`conversations` at once, each `prompt` tokens in and `reply` out; `cached` of the prompt's
    tokens are in the pages already. `step_tokens` bounds the prompt tokens of one step."""

    conversations: int
    prompt: int
    reply: int
    cached: int = 0
    step_tokens: int = 8192


@dataclass(frozen=True, slots=True)
class Served:
    """Seconds from the common start: to each conversation's first token, and to the last of all."""

    first_token: list[float]
    seconds: float


def serve_steps(shape: Shape, name: str, device: str) -> dict[str, float]:
    """The figures of our steps over `shape`; the last of three runs counts, see `GpuSteps`."""
    config = synthetic_config(name)
    steps = int8_steps(int8_model(config, 1, device), device)
    new = shape.prompt - shape.cached
    pool = Pool(config, shape.conversations, shape.prompt + shape.reply, new, device)
    with torch.inference_mode():
        for _ in range(3 if device != "cpu" else 1):  # compile, capture, then replay
            served = _run(shape, steps, pool, config.vocab_size)
    return summary(shape, served)


def _run(shape: Shape, steps: Steps, pool: Pool, vocabulary: int) -> Served:
    count, new = shape.conversations, shape.prompt - shape.cached
    together = max(1, shape.step_tokens // new)
    prompts = np.random.default_rng(0).integers(0, vocabulary, (count, new))
    held = np.full(count, shape.cached)
    said = np.zeros(count, dtype=np.int64)
    last = np.zeros(count, dtype=np.int64)
    first = np.zeros(count)
    waiting = 0
    begin = time.perf_counter()
    while True:
        if waiting < count:
            rows = np.arange(waiting, min(count, waiting + together))
            waiting += len(rows)
            sizes = np.full(len(rows), new)
            batch = pool.batch(rows, held[rows], sizes, prompts[rows].ravel())
            last[rows] = best_tokens(steps, steps.run(batch))
            held[rows] += new
            said[rows] = 1
            first[rows] = time.perf_counter() - begin
        running = np.flatnonzero((said > 0) & (said < shape.reply))
        if len(running):
            ones = np.ones(len(running), dtype=np.int64)
            batch = pool.batch(running, held[running], ones, last[running])
            last[running] = best_tokens(steps, steps.run(batch))
            held[running] += 1
            said[running] += 1
        elif waiting == count:
            return Served(first.tolist(), time.perf_counter() - begin)


def summary(shape: Shape, served: Served) -> dict[str, float]:
    """What is reported of a run."""
    done = len(served.first_token)
    return {
        "conversations": done,
        "seconds": served.seconds,
        "requests_a_second": done / served.seconds,
        "reply_tokens_a_second": done * shape.reply / served.seconds,
        "all_tokens_a_second": done * (shape.prompt + shape.reply) / served.seconds,
        "ttft_p50_s": float(np.percentile(served.first_token, 50)),
        "ttft_p99_s": float(np.percentile(served.first_token, 99)),
    }


def serve_peer(shape: Shape, limit: float) -> dict[str, object]:
    """transformers' run of the same shape, all prompts whole; raises `RuntimeError` if it failed.

    It shares no prefixes for models with sliding layers, so a cached prompt costs it the same.
    """
    command = [
        *(sys.executable, str(PEER)),
        *("--conversations", str(shape.conversations)),
        *("--prompt", str(shape.prompt)),
        *("--reply", str(shape.reply)),
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=limit)
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"transformers did not end within {limit:.0f} s") from None
    if done.returncode:
        raise RuntimeError(" | ".join(done.stderr.strip().splitlines()[-5:]))
    found: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    served = Served(found.pop("first_token"), found.pop("seconds"))  # type: ignore[arg-type]
    return {**summary(shape, served), **found}
