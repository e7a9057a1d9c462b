"""Sequences in int8 pages, without an engine around them, and the time of a step over them.

On CUDA the steps are the Triton kernels (`GpuSteps`), on a CPU their reference in PyTorch.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np
import torch

from backends.local.int8 import Int8Steps
from backends.local.kernels.batch import Batch
from backends.local.kernels.pages import PAGE_TOKENS, GroupTable

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from backends.local.kernels.batch import Steps
    from backends.local.model_config import ModelConfig
    from backends.local.quantize import QuantModel
    from kvstore.api import Group

    Ints = NDArray[np.int64]

__all__ = ["Pool", "best_tokens", "int8_steps", "step_seconds", "synchronize"]


def int8_steps(model: QuantModel, device: str) -> Steps:
    """The fast way to run the model on `device`.

    Kernels of a GPU are compared with the reference on a few layers first: raises `RuntimeError`
    where they differ, since the speed of wrong results is none.
    """
    if device == "cpu":
        return Int8Steps(model)
    from backends.local.gpu.trial import trusted_steps

    steps = trusted_steps(model, context=8192)
    if steps is None:
        raise RuntimeError("this device did not pass its trial; the log says why")
    return steps


def best_tokens(steps: Steps, logits: torch.Tensor) -> Ints:
    """The likeliest token of each row of the step just run, on the host; waits for it."""
    best = getattr(steps, "best", None)
    if best is None:
        best = logits.argmax(-1)
    return best.cpu().numpy().astype(np.int64)


def synchronize(device: str) -> None:
    """Waits until the device has done all that it was given."""
    if device != "cpu":
        torch.cuda.synchronize()


class Pool:
    """Pages for `sequences` sequences of up to `tokens` tokens, filled with random KV.

    Page p of a sequence lies in its own slot p modulo what the group keeps: a sliding group keeps
    its window, `step_tokens` new tokens and two cut pages, a global one everything.
    """

    def __init__(
        self, config: ModelConfig, sequences: int, tokens: int, step_tokens: int, device: str
    ) -> None:
        self._config = config
        self._layout = config.kv_layout("int8")
        self._kept = [_pages(group, tokens, step_tokens) for group in self._layout.groups]
        self._pages = []
        self.bytes_each = 0
        codes = 2 * PAGE_TOKENS * config.kv_heads * config.head_dim
        for group, kept in zip(self._layout.groups, self._kept, strict=True):
            page_bytes = PAGE_TOKENS * group.bytes_per_token
            pages = torch.empty((sequences * kept, page_bytes), dtype=torch.uint8, device=device)
            pages.random_(0, 256)
            scales = pages.view(torch.float16).view(len(pages), len(group.layers), -1)
            scales[:, :, codes // 2 :] = 0.01
            self._pages.append(pages)
            self.bytes_each += kept * page_bytes

    @staticmethod
    def bytes_for(config: ModelConfig, tokens: int, step_tokens: int) -> int:
        """KV bytes of one sequence."""
        return sum(
            _pages(group, tokens, step_tokens) * PAGE_TOKENS * group.bytes_per_token
            for group in config.kv_layout("int8").groups
        )

    def batch(self, rows: Ints, before: Ints, new: Ints, tokens: Ints) -> Batch:
        """The next `new[i]` tokens of sequence `rows[i]`, which holds `before[i]`.

        `tokens` are laid end to end. Every sequence's last token wants logits.
        """
        starts = np.concatenate([[0], new.cumsum()])
        after = before + new
        within = np.arange(starts[-1]) - np.repeat(starts[:-1], new)
        return Batch(
            tokens=_int32(tokens),
            positions=_int32(np.repeat(before, new) + within),
            starts=_int32(starts),
            lengths=_int32(after),
            wanted=_int32(starts[1:] - 1),
            tables=tuple(
                self._table(at, group.window, rows, before, after)
                for at, group in enumerate(self._layout.groups)
            ),
            end=int(after.max()),
        )

    def same(self, sequences: int, before: int, new: int) -> Batch:
        """The first `sequences` sequences, all with `before` tokens and `new` random ones."""
        rows = np.arange(sequences)
        tokens = np.random.default_rng(0).integers(0, self._config.vocab_size, sequences * new)
        return self.batch(rows, np.full(sequences, before), np.full(sequences, new), tokens)

    def _table(
        self, at: int, window: int | None, rows: Ints, before: Ints, after: Ints
    ) -> GroupTable:
        kept = self._kept[at]
        first = np.zeros_like(before)
        if window is not None:
            first = np.maximum(0, before + 1 - window) // PAGE_TOKENS
        width = int(((after - 1) // PAGE_TOKENS - first).max()) + 1
        if width > kept:
            raise ValueError(f"{width} pages of a sequence do not fit into {kept}")
        pages = first[:, None] + np.arange(width)
        return GroupTable(
            pages=self._pages[at],
            slots=_int32(rows[:, None] * kept + pages % kept),
            first_page=_int32(first),
        )


def _pages(group: Group, tokens: int, step_tokens: int) -> int:
    """Pages of a group that a sequence keeps."""
    every = -(-tokens // PAGE_TOKENS)
    if group.window is None:
        return every
    return min(every, -(-(group.window + step_tokens) // PAGE_TOKENS) + 1)


def _int32(values: Ints) -> torch.Tensor:
    return torch.from_numpy(values.astype(np.int32))


def step_seconds(steps: Steps, batch: Batch, device: str, repeats: int) -> float:
    """Median seconds of a step, its copies to the device included.

    The first runs compile and capture; they do not count.
    """
    with torch.inference_mode():
        for _ in range(3 if device != "cpu" else 1):
            steps.run(batch)
        taken = []
        for _ in range(3):
            synchronize(device)
            begin = time.perf_counter()
            for _ in range(repeats):
                steps.run(batch)
            synchronize(device)
            taken.append((time.perf_counter() - begin) / repeats)
    return sorted(taken)[1]
