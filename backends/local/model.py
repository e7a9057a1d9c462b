"""Our own decoder: one forward pass over any mix of prefill chunks and decodes.

The tokens of all chunks are laid end to end for the linear layers; attention reads each sequence's
own pages of KV. How a step is computed is a `Steps`: float32 in PyTorch, int8 in PyTorch, or int8
in our C++ or our CUDA kernels, which give the same bits as the second.
"""

from __future__ import annotations

import contextlib
import math
from concurrent.futures import Future
from itertools import accumulate
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from backends.api import Sampling
from backends.local.errors import ModelError
from backends.local.float32 import Float32Steps
from backends.local.int8 import Int8Steps
from backends.local.kernels.batch import Batch
from backends.local.kernels.pages import GroupTable
from backends.local.kernels.steps import CpuSteps
from backends.local.paged import NoRoom, SequenceKV
from backends.local.quantize import quantize
from backends.local.sampling import Sampler
from backends.local.warming import WarmingSteps

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from backends.local.kernels.batch import Drawing, Steps
    from backends.local.kernels.cpu import CpuKernels
    from backends.local.model_config import KVDtype, ModelConfig
    from backends.local.quantize import QuantModel
    from backends.local.sampling import Draw
    from kvstore.device import DeviceTier

__all__ = ["Chunk", "Decoder", "DeviceChoice", "random_weights"]

DeviceChoice = Literal["auto", "cpu", "cuda"]


class Chunk(NamedTuple):
    """The next tokens (T >= 1 ids) of a sequence: positions kv.length onwards.

    Logits are wanted for the last `wanted` of them, at least one. Where `largest_only`, for a
    row's largest: any other may come out as -inf.
    """

    kv: SequenceKV
    tokens: Sequence[int] | Tensor
    wanted: int = 1
    largest_only: bool = False


class Decoder:
    """A decoder with its weights.

    The arena behind every `kv` keeps `kv_dtype`; `numerics` names the arithmetic, for the KV
    space: what two decoders of one name and equal weights compute is the same bit for bit.
    """

    def __init__(self, config: ModelConfig, steps: Steps) -> None:
        self.config = config
        self._steps = steps
        self._layout = config.kv_layout(steps.kv_dtype)

    @classmethod
    @torch.inference_mode()
    def float32(cls, config: ModelConfig, weights: Mapping[str, Tensor]) -> Decoder:
        """Computes in float32; `weights` as `config.tensor_shapes()` names and shapes them.

        They are packed for speed; of the originals only the embedding stays in use, in place.
        """
        return cls(config, Float32Steps(config, weights))

    @classmethod
    @torch.inference_mode()
    def int8(
        cls,
        config: ModelConfig,
        weights: Mapping[str, Tensor],
        kernels: CpuKernels | Future[CpuKernels | None] | None,
        *,
        device: DeviceChoice = "cpu",
        context: int = 8192,
    ) -> Decoder:
        """`of` the quantised `weights`, which are not needed afterwards."""
        model = quantize(config, weights)
        return cls.of(model, kernels, device=device, context=context)

    @classmethod
    @torch.inference_mode()
    def of(
        cls,
        model: QuantModel,
        kernels: CpuKernels | Future[CpuKernels | None] | None,
        *,
        device: DeviceChoice = "cpu",
        context: int = 8192,
    ) -> Decoder:
        """Computes in int8: on a CUDA device, with `kernels` where they support the model, or in
        PyTorch; the same bits. `auto` takes the device where there is one that passes its trial.
        Kernels that are still being compiled take over from PyTorch when they are ready.

        `context` is what the device is made ready for. Raises `ModelError` where `device` is
        `cuda` and that cannot be.
        """
        config = model.config
        if device != "cpu" and (steps := _on_gpu(model, device, context)) is not None:
            return cls(config, steps)
        if isinstance(kernels, Future):
            if not kernels.done():
                return cls(config, WarmingSteps(model, kernels))
            kernels = kernels.result()
        if kernels is not None and kernels.supports(config):
            return cls(config, CpuSteps(model, kernels))
        return cls(config, Int8Steps(model))

    @classmethod
    def random(cls, config: ModelConfig, seed: int) -> Decoder:
        """A float32 decoder with weights drawn from `seed`: for tests and benchmarks."""
        return cls.float32(config, random_weights(config, seed))

    @property
    def kv_dtype(self) -> KVDtype:
        """What the pages of KV hold."""
        return self._steps.kv_dtype

    @property
    def numerics(self) -> str:
        """The name of the arithmetic."""
        return self._steps.numerics

    @property
    def device(self) -> str:
        """Where the pages of KV lie: `cpu` or `cuda`."""
        return self._steps.device

    @property
    def row_budget(self) -> int:
        """How many rows a step computes in little more than the time of one."""
        return self._steps.row_budget

    @property
    def runs_beside(self) -> bool:
        """Whether `forward` gives back before its step is computed: there is time meanwhile."""
        return self._steps.device != "cpu"

    def prepare(self, arena: DeviceTier, sequences: int, tokens: int, context: int) -> None:
        """Takes every shape of step, so that none is compiled while somebody waits for it.

        Up to `sequences` sequences of `context` tokens, and `tokens` new tokens a step, in the
        empty pool `arena`. On a CPU there is nothing to prepare.
        """
        if self.device == "cpu":
            return
        from backends.local.gpu.shapes import steps_of_every_shape

        wide = Sampler(Sampling(5.0, top_p=0.99, repetition_penalty=1.1), [0], [1]).ask()
        # All are launched before any is captured: what a larger one makes room for drops graphs.
        for _ in range(3):
            for counts, length in steps_of_every_shape(sequences, tokens, context):
                kvs = [SequenceKV(arena) for _ in counts]
                # A step that has no room now will not have any later.
                with contextlib.suppress(NoRoom):
                    for begin in range(0, length, tokens):  # pages of whatever: nobody reads them
                        kvs[0].reserve(min(tokens, length - begin))
                        kvs[0].advance(min(tokens, length - begin))
                    logits = self.forward(
                        [Chunk(kv, [0] * count) for kv, count in zip(kvs, counts, strict=True)]
                    )
                    self.draw(logits, [*wide, *[None] * (len(counts) - 1)])()
                for kv in kvs:
                    kv.free()

    def draw(self, logits: Tensor, draws: Sequence[Draw | None]) -> Drawing:
        """Begins to draw the token of each row that `forward` gave, and that its draw asks for.

        All at once, using the logits up; the next `forward` comes after the tokens were asked for.
        """
        return self._steps.draw(logits, draws)

    @torch.inference_mode()
    def forward(self, chunks: Sequence[Chunk]) -> Tensor:
        """Runs the chunks' tokens through the model; returns float32 logits [W, vocab].

        The rows are the chunks' wanted ones, in order. Appends K and V to every chunk's `kv` and
        advances its length. Each `kv` may occur once. Raises `ValueError` for an empty chunk, for
        one that wants no row or more than it has, or for a pool of other pages than
        `config.kv_layout(kv_dtype)` says.
        """
        arena = chunks[0].kv.arena
        if arena.layout != self._layout:
            raise ValueError(f"the sequence's pool does not keep {self.kv_dtype} pages")
        for kv, tokens, wanted, _ in chunks:
            count = len(tokens)
            if not count:
                raise ValueError("a chunk needs at least one token")
            if not 0 < wanted <= count:
                raise ValueError(f"logits of {wanted} of {count} tokens")
            if kv.arena is not arena:
                raise ValueError("sequences of one step share one pool of pages")
        for kv, tokens, *_ in chunks:
            kv.reserve(len(tokens))
        logits = self._steps.run(_lay_out(chunks))
        for kv, tokens, *_ in chunks:
            kv.advance(len(tokens))
        return logits

    def score(self, chunk: Chunk) -> Tensor:
        """Like `forward` for one chunk, with the logits of all its tokens: [T, vocab]."""
        return self.forward([chunk._replace(wanted=len(chunk.tokens))])


def _lay_out(chunks: Sequence[Chunk]) -> Batch:
    counts = [len(chunk.tokens) for chunk in chunks]
    starts = [0, *accumulate(counts)]
    lengths = [chunk.kv.length + count for chunk, count in zip(chunks, counts, strict=True)]
    ids: list[int] = []
    for _, tokens, *_ in chunks:
        ids += tokens.tolist() if isinstance(tokens, Tensor) else tokens
    positions: Sequence[int] | NDArray[np.int64]
    wanted: Sequence[int] | NDArray[np.int64]
    if len(ids) == len(chunks):  # one token each: a decode
        positions, wanted = [length - 1 for length in lengths], range(len(chunks))
    else:
        positions = _ending(lengths, counts)
        wanted = _ending(starts[1:], [chunk.wanted for chunk in chunks])
    # One tensor, cut: to make one takes its time in a step of few tokens.
    arrays = [np.array(each, np.int32) for each in (ids, positions, starts, lengths, wanted)]
    numbers = torch.from_numpy(np.concatenate(arrays))
    parts = torch.split_with_sizes(numbers, [len(array) for array in arrays])
    arena = chunks[0].kv.arena
    sequences = [chunk.kv.row for chunk in chunks]
    return Batch(
        tokens=parts[0],
        positions=parts[1],
        starts=parts[2],
        lengths=parts[3],
        wanted=parts[4],
        tables=tuple(
            GroupTable(arena.pages[id], torch.from_numpy(slots), torch.from_numpy(first))
            for id, (first, slots) in (
                (group.id, arena.tables.groups[group.id].gather(sequences))
                for group in arena.layout.groups
            )
        ),
        end=max(lengths),
        largest_only=all(chunk.largest_only for chunk in chunks),
    )


def _ending(ends: Sequence[int], counts: Sequence[int]) -> NDArray[np.int64]:
    """The last `counts[i]` numbers before each of `ends`."""
    return np.concatenate(
        [np.arange(end - count, end) for end, count in zip(ends, counts, strict=True)]
    )


def _on_gpu(model: QuantModel, device: DeviceChoice, context: int) -> Steps | None:
    """The steps of a CUDA device, unless `auto` finds none that can be trusted."""
    if not torch.cuda.is_available():
        if device == "cuda":
            raise ModelError("there is no CUDA device")
        return None
    from backends.local.gpu.trial import trusted_steps

    steps = trusted_steps(model, context=context)
    if steps is None and device == "cuda":
        raise ModelError("the CUDA device did not pass its trial; the log says why")
    return steps


def random_weights(config: ModelConfig, seed: int) -> dict[str, Tensor]:
    """Weights for `config` drawn from `seed`, scaled so that activations stay near one.

    For tests and benchmarks.
    """
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in config.tensor_shapes().items():
        drawn = torch.randn(shape, generator=generator)
        if len(shape) == 1:
            weights[name] = 1.0 - config.norm_offset + 0.1 * drawn
        else:
            weights[name] = drawn / math.sqrt(shape[1])
    return weights
