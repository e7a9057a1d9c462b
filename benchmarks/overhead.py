"""What the engine costs around the model's steps: microseconds of its Python, without any device.

The real engine, scheduler, page tables and KV store, over steps that compute nothing and are done
at once, on gemma-3-270m's layers with small heads. Every conversation asks at once, in three runs:
`cold`, `near` (95 % of the prompt still lies in the device's pages) and `host` (it comes back from
host memory). Seconds are the thread's own, so that other processes do not count. For each:

    first_us    a conversation, from the common start until all have their first token: rendering,
                looking its prefix up, restoring it, and the steps with its prompt
    step_us     a token and stream, in steps of at least half the streams and no prompt
    idle_us     of that, what a device would wait for: from one step's tokens to the next launch
    all_us      a token and stream from the common start to the last reply's end, prompts and the
                keeping of what was said among it; at most this much of a device's time is hidden
"""

from __future__ import annotations

import statistics
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from backends.local.model import Decoder
from backends.local.quantize import NUMERICS
from backends.local.synthetic import synthetic_config
from benchmarks.gpu_engine import answered, ask, drawn_engine
from benchmarks.gpu_serve import Shape

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from torch import Tensor

    from backends.local.engine import Engine
    from backends.local.kernels.batch import Batch, Drawing
    from backends.local.model import Chunk
    from backends.local.model_config import KVDtype, ModelConfig
    from backends.local.sampling import Draw

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what only this benchmark takes."""
    parser.add_argument("--streams", type=int, default=256)
    parser.add_argument("--prompt", type=int, default=5600, help="tokens of a prompt")
    parser.add_argument("--reply", type=int, default=140, help="tokens of a reply")


async def run(args: argparse.Namespace) -> dict[str, object]:
    """The figures above, by run."""
    shape = Shape(args.streams, args.prompt, args.reply)
    if args.smoke:
        shape = Shape(4, 300, 12, step_tokens=512)
    found: dict[str, object] = {}
    for name in ("cold", "near", "host"):
        cached = 0 if name == "cold" else shape.prompt * 95 // 100
        found[name] = measure(replace(shape, cached=cached), restored=name == "host")
        print(name, found[name], flush=True)
    return found


def measure(shape: Shape, *, restored: bool) -> dict[str, float]:
    """One run's figures; `restored` empties the device before, so that host memory serves."""
    decoder = _Idle(_config())
    engine, pool = drawn_engine(decoder, shape)
    conversations = range(shape.conversations)
    try:
        if shape.cached:
            answered(engine, ask(engine, conversations, shape.cached, 1))
        if restored:
            pool.discard(pool.held())
        return _timed(engine, decoder, shape)
    finally:
        engine.stop()
        engine.run()


def _timed(engine: Engine, decoder: _Idle, shape: Shape) -> dict[str, float]:
    streams = shape.conversations
    begin = time.thread_time()
    heard = ask(engine, range(streams), shape.prompt, shape.reply)
    while not all(h.first or h.error for h in heard):
        engine.step()
    first = time.thread_time() - begin
    steps, idle = [], []
    decoder.streams = 0
    while any(h.done is None and h.error is None for h in heard):
        began = time.thread_time()
        engine.step()
        if decoder.streams >= streams / 2 and decoder.is_decode:
            steps.append((time.thread_time() - began) / decoder.streams)
            idle.append(decoder.idle / decoder.streams)
    answered(engine, heard)
    seconds = time.thread_time() - begin
    return {
        "first_us": first / streams * 1e6,
        "step_us": statistics.median(steps) * 1e6,
        "idle_us": statistics.median(idle) * 1e6,
        "all_us": seconds / (streams * shape.reply) * 1e6,
    }


def _config() -> ModelConfig:
    """gemma-3-270m's layers with a small vocabulary and heads: the same pages, of fewer bytes."""
    gemma = synthetic_config("270m-gemma")
    return replace(gemma, vocab_size=512, hidden_size=64, head_dim=16, intermediate_size=64)


class _Idle(Decoder):
    """A decoder of steps that are done when they begin; row `n` of a step says token `n`."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config, _NoSteps(config.vocab_size))
        self.streams, self.is_decode = 0, False
        """Of the latest step."""
        self.idle = 0.0
        """Seconds between the tokens of the step before and its launch."""
        self._drawn = 0.0

    @property
    def runs_beside(self) -> bool:
        return True

    def draw(self, logits: Tensor, draws: Sequence[Draw | None]) -> Drawing:
        tokens: list[int | None] = list(range(len(draws)))

        def drawn() -> list[int | None]:
            self._drawn = time.thread_time()
            return tokens

        self.idle = time.thread_time() - self._drawn
        return drawn

    def forward(self, chunks: Sequence[Chunk]) -> Tensor:
        self.streams = len(chunks)
        self.is_decode = all(len(chunk.tokens) == 1 for chunk in chunks)
        return super().forward(chunks)


class _NoSteps:
    """Implements `Steps`: computes nothing."""

    kv_dtype: KVDtype = "int8"
    numerics = NUMERICS
    device = "cpu"
    row_budget = 1

    def __init__(self, vocabulary: int) -> None:
        self._logits = torch.zeros(1, vocabulary)

    def run(self, batch: Batch) -> Tensor:
        return self._logits.expand(len(batch.wanted), -1)

    def draw(self, logits: Tensor, draws: Sequence[Draw | None]) -> Drawing:
        raise NotImplementedError("the decoder draws by itself")
