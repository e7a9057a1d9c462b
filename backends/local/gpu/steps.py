"""`GpuSteps`: the int8 decoder's steps as kernels in CUDA graphs, the CPU's bits.

All sizes of a launch depend on the padded `Shape` alone, and everything else is read from `Numbers`
on the device, so a shape's launches are captured once and replayed. With triton's interpreter
(TRITON_INTERPRET=1, device "cpu") the same code runs on the CPU, without graphs.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import structlog
import torch

from backends.local.gpu.draws import DeviceDraws
from backends.local.gpu.hopper import launches_for
from backends.local.gpu.scratch import Scratch, spans_read
from backends.local.gpu.shapes import Numbers, Shape, Shapes
from backends.local.layers import RopeTables
from backends.local.sampling import all_greedy

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from backends.local.kernels.batch import Batch, Drawing
    from backends.local.model_config import KVDtype
    from backends.local.quantize import QuantLinear, QuantModel
    from backends.local.sampling import Draw

__all__ = ["GpuSteps", "on_device"]

_log = structlog.get_logger()


def on_device(model: QuantModel, device: torch.device | str) -> QuantModel:
    """The same model with every tensor on `device`; one that is there already is not copied."""

    def linear(value: QuantLinear) -> QuantLinear:
        codes, scale = value.codes.to(device), value.scale.to(device)
        return replace(value, codes=codes.contiguous(), scale=scale.contiguous())

    def tensor(value: Tensor | None) -> Tensor | None:
        return None if value is None else value.to(device).contiguous()

    embedding = linear(model.embedding)
    layers = tuple(
        replace(
            layer,
            qkv=linear(layer.qkv),
            out=linear(layer.out),
            gate_up=linear(layer.gate_up),
            down=linear(layer.down),
            before_attention=layer.before_attention.to(device).contiguous(),
            before_mlp=layer.before_mlp.to(device).contiguous(),
            qk_norm=tensor(layer.qk_norm),
            after_attention=tensor(layer.after_attention),
            after_mlp=tensor(layer.after_mlp),
        )
        for layer in model.layers
    )
    head = embedding if model.head is model.embedding else linear(model.head)
    return replace(
        model,
        embedding=embedding,
        embed_factor=model.embed_factor.to(device).contiguous(),
        head=head,
        norm=model.norm.to(device),
        layers=layers,
    )


class GpuSteps:
    """Implements `Steps` on a CUDA device; equal to `Int8Steps` bit for bit. Not thread-safe.

    What `run` returns is overwritten by the next step, and `draw` is for the newest alone. The
    pages of a batch lie on the device, its other tensors on the host. Positions and page tables
    are made ready for `context` tokens, and larger ones when a sequence comes to need them.
    """

    kv_dtype: KVDtype = "int8"
    row_budget = 1  # a captured step has one row a sequence

    def __init__(
        self,
        model: QuantModel,
        device: torch.device | str = "cuda",
        *,
        context: int = 8192,
        graphs: bool = True,
    ) -> None:
        self.device = str(device)
        self.numerics = model.numerics
        self._device = torch.device(device)
        self._model = on_device(model, self._device)
        self._launches = launches_for(self._model, self._device, graphs=graphs)
        self._ropes = RopeTables(model.config)
        self._positions = 0
        self._rope_of: list[tuple[Tensor, Tensor]] = []
        self._graphs: dict[tuple[Shape, tuple[int, ...]], torch.cuda.CUDAGraph | None] = {}
        self._graphed = graphs and self._device.type == "cuda"
        launches = self._launches
        self._shapes = Shapes(
            launches.windows, launches.tile_tokens, context, graphed=self._graphed
        )
        self._make_positions(context)
        self._most = (0, 0, 0, 0)
        self._scratch: Scratch | None = None
        self._numbers: dict[Shape, Numbers] = {}
        self._draws = DeviceDraws()
        # Of each row, the lowest id of its largest logit, and that; infinite where it holds a NaN.
        self._best = torch.empty(0, dtype=torch.int32)
        self._top = torch.empty(0)

    @torch.inference_mode()
    def run(self, batch: Batch) -> Tensor:
        launches = self._launches
        shape = self._shapes.of(batch)
        self._make_positions(batch.end)
        numbers = self._numbers.get(shape)
        if numbers is None or self._scratch is None:
            self._make_scratch(shape)
            numbers = self._numbers[shape] = Numbers(shape, self._device)
        scratch = self._scratch
        assert scratch is not None
        numbers.fill(batch, launches.tile_tokens)
        pages = [table.pages for table in batch.tables]
        if self._graphed:
            self._replay(numbers, pages, scratch)
        else:
            launches.step(numbers, pages, scratch, self._rope_of)
        wanted, vocabulary = len(batch.wanted), self._model.config.vocab_size
        self._best, self._top = scratch.best[:wanted], scratch.top[:wanted]
        return scratch.logits[: wanted * vocabulary].view(wanted, vocabulary)

    def draw(self, logits: Tensor, draws: Sequence[Draw | None]) -> Drawing:
        if all_greedy(draws):
            return self._likeliest
        return self._draws.begin(logits, draws)

    def _likeliest(self) -> list[int | None]:
        return [
            token if math.isfinite(top) else None
            for token, top in zip(self._best.tolist(), self._top.tolist(), strict=True)
        ]

    def _replay(self, numbers: Numbers, pages: Sequence[Tensor], scratch: Scratch) -> None:
        """Launches the first time, which compiles; captures the second time; then replays."""
        key = (numbers.shape, tuple(each.data_ptr() for each in pages))
        if key not in self._graphs:
            self._launches.step(numbers, pages, scratch, self._rope_of)
            self._graphs[key] = None
            return
        graph = self._graphs[key]
        if graph is None:
            graph = torch.cuda.CUDAGraph()
            # Other threads may copy pages meanwhile.
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self._launches.step(numbers, pages, scratch, self._rope_of)
            self._graphs[key] = graph
            # After the engine's start this should not be seen: somebody waits meanwhile.
            _log.info("graph_captured", shape=str(numbers.shape), graphs=len(self._graphs))
        graph.replay()

    def _make_positions(self, end: int) -> None:
        if end <= self._positions:
            return
        tables = self._ropes.upto(end)
        there = [(cos.to(self._device), sin.to(self._device)) for cos, sin in tables]
        self._rope_of = [there[self._ropes.of(layer.spec)] for layer in self._model.layers]
        self._positions = len(tables[0][0])
        self._graphs = {}

    def _make_scratch(self, shape: Shape) -> None:
        """Room for this shape and all before; drops the graphs when it has to grow."""
        launches = self._launches
        parts = shape.sequences * max(map(spans_read, launches.windows, shape.widths))
        sums = launches.sums_needed(shape.tokens)
        needed = (shape.tokens, shape.wanted, sums, parts * self._model.config.q_heads)
        a, b, c, d = map(max, self._most, needed)
        if self._scratch is None or (a, b, c, d) != self._most:
            self._graphs = {}
            self._scratch = None  # freed before the next is allocated
            self._scratch = Scratch.of(self._model, self._device, a, b, c, d)
            self._most = (a, b, c, d)
