"""A model's steps by the C++ kernels."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import weakref
from typing import TYPE_CHECKING

import structlog
import torch
import torch.nn.functional as F

from backends.local.kernels.coarse import coarsen, coarseness
from backends.local.kernels.cpu import BLOCK
from backends.local.kernels.draws import draw_rows
from backends.local.kernels.pages import places
from backends.local.kernels.structs import CBatch, CCoarse, CGroup, CLayer, CLinear, CModel
from backends.local.layers import RopeTables
from backends.local.quantize import QuantLinear

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from backends.local.kernels.batch import Batch, Drawing
    from backends.local.kernels.cpu import CpuKernels
    from backends.local.layers import Layer
    from backends.local.model_config import KVDtype
    from backends.local.quantize import QuantModel
    from backends.local.sampling import Draw

__all__ = ["CpuSteps"]

_log = structlog.get_logger()

_LINE, _HUGE = 64, 1 << 21  # bytes of a cache line and of a huge page
_WORTH = 0.4  # of the head read after a coarse look: more costs as much as to read it all
_JUDGED = 16  # steps that this is judged by
_WITHOUT = 256  # steps until it is tried again


class _Arena:
    """Memory for weights in huge pages where the system gives them: fewer misses, faster reads."""

    def __init__(self, size: int) -> None:
        # Private: what is shared has huge pages only where the system is told so.
        self._region = mmap.mmap(-1, size + _HUGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        with contextlib.suppress(OSError, AttributeError):
            self._region.madvise(mmap.MADV_HUGEPAGE)
        self._bytes = torch.frombuffer(self._region, dtype=torch.uint8)
        self._used = -self._bytes.data_ptr() % _HUGE

    def put(self, codes: Tensor, raised_by: int) -> int:
        """Copies an int8 tensor in, every byte so much higher, modulo 256; its address."""
        into = self.take(codes.numel())
        into.copy_(codes.reshape(-1).view(torch.uint8))
        into += raised_by
        return into.data_ptr()

    def take(self, size: int) -> Tensor:
        """The next bytes."""
        taken = self._bytes[self._used : self._used + size]
        self._used += size + -size % _LINE
        return taken


class CpuSteps:
    """Implements `Steps` with the kernels; equal to `Int8Steps` bit for bit.

    Keeps packed copies of the model's codes. Not thread-safe.
    """

    kv_dtype: KVDtype = "int8"
    device = "cpu"
    row_budget = 4  # one reading of the weights feeds them all

    def __init__(self, model: QuantModel, kernels: CpuKernels) -> None:
        config = model.config
        self.numerics = model.numerics
        self._config = config
        self._kernels = kernels
        self._keep: list[object] = []  # what the structs below point into
        self._ropes = RopeTables(config)
        self._places = places(config.kv_layout("int8"))
        self._blocks = -(-config.vocab_size // BLOCK)  # of the head
        by = coarseness(model.head.codes, model.head_inputs)
        coarse_bytes = self._blocks * kernels.coarse_bytes(config.hidden_size) if by else 0
        self._arena = _Arena(_packed_bytes(model) + coarse_bytes)
        layers = (CLayer * len(model.layers))(
            *(self._layer(index, layer) for index, layer in enumerate(model.layers))
        )
        self._keep.append(layers)
        embedding = self._linear(model.embedding)
        tied = model.head is model.embedding
        head = embedding if tied else self._linear(model.head)
        coarse = CCoarse()  # none
        if by is not None:
            into = self._arena.take(coarse_bytes).view(self._blocks, -1)
            coarse, keep = coarsen(kernels.coarsen, head, by, into)
            self._keep += keep
        self._blocks_read = 0.0  # of the head by a step with a coarse look, on average
        self._whole_heads = 0  # greedy steps that still go without
        self._model = CModel(
            embedding,
            head,
            coarse,
            self._address(model.norm),
            self._address(model.embed_factor),
            layers,
            len(layers),
            config.hidden_size,
            config.q_heads,
            config.kv_heads,
            config.head_dim,
            config.intermediate_size,
            config.vocab_size,
            config.activation == "gelu_tanh",
            config.rms_eps,
            config.attention_scale,
        )
        self._scratch = torch.empty(0, dtype=torch.uint8)
        # The logits of the last step, while they are in use, and their memory.
        self._last: tuple[weakref.ref[Tensor], Tensor] | None = None
        self._spare = torch.empty(0)  # memory of logits that were used up

    def run(self, batch: Batch) -> Tensor:
        config, wanted = self._config, len(batch.wanted)
        count = wanted * config.vocab_size
        memory = self._memory(count + wanted * self._blocks)
        logits = memory[:count].view(wanted, config.vocab_size)
        read = ctypes.c_int32(0)  # blocks of the head
        looks = batch.largest_only and not self._whole_heads
        if batch.largest_only and not looks:
            self._whole_heads -= 1
        ropes = self._ropes.upto(batch.end)
        widths = [table.slots.shape[1] for table in batch.tables]
        groups = (CGroup * len(widths))(
            *(
                CGroup(
                    table.pages.data_ptr(),
                    table.slots.data_ptr(),
                    table.first_page.data_ptr(),
                    table.pages.shape[1],
                    width,
                )
                for table, width in zip(batch.tables, widths, strict=True)
            )
        )
        addresses = ctypes.c_void_p * len(ropes)
        step = CBatch(
            batch.tokens.data_ptr(),
            batch.positions.data_ptr(),
            batch.starts.data_ptr(),
            batch.lengths.data_ptr(),
            batch.wanted.data_ptr(),
            groups,
            addresses(*(cos.data_ptr() for cos, _ in ropes)),
            addresses(*(sin.data_ptr() for _, sin in ropes)),
            memory.data_ptr(),
            _behind(memory, count),
            ctypes.addressof(read) if looks else None,
            self._scratch.data_ptr(),
            len(self._scratch),
            len(batch.tokens),
            len(batch.lengths),
            wanted,
            torch.get_num_threads(),
            max(widths),
        )
        needed = self._kernels.scratch_bytes(self._model, step)
        if needed > len(self._scratch):
            self._scratch = torch.empty(needed, dtype=torch.uint8)
            step.scratch, step.scratch_bytes = self._scratch.data_ptr(), needed
        failed = self._kernels.forward(self._model, step)
        assert not failed
        if read.value:
            self._judge_coarse(read.value)
        self._last = weakref.ref(logits), memory
        return logits

    def _judge_coarse(self, read: int) -> None:
        """Does without coarse looks for a while where they leave so much that it is not less."""
        self._blocks_read += (read - self._blocks_read) / _JUDGED
        if self._blocks_read > _WORTH * self._blocks:
            _log.debug("coarse_head_left", blocks_read=round(self._blocks_read))
            self._blocks_read, self._whole_heads = 0.0, _WITHOUT

    def draw(self, logits: Tensor, draws: Sequence[Draw | None]) -> Drawing:
        last, self._last = self._last, None
        largest = None
        if last is not None and last[0]() is logits:
            self._spare = last[1]
            largest = _behind(self._spare, logits.numel())
        tokens = draw_rows(self._kernels, logits, draws, largest)
        return lambda: tokens

    def _memory(self, count: int) -> Tensor:
        """Room for logits, that of used up ones where it suffices: new pages take their time."""
        spare, self._spare = self._spare, torch.empty(0)
        return spare if len(spare) >= count else torch.empty(count)

    def _layer(self, index: int, layer: Layer[QuantLinear]) -> CLayer:
        spec = layer.spec
        group, row = self._places[index if spec.kv_source is None else spec.kv_source]
        return CLayer(
            self._linear(layer.qkv),
            self._linear(layer.out),
            self._linear(_interleaved(layer.gate_up)),
            self._linear(layer.down),
            self._address(layer.before_attention),
            self._address(layer.before_mlp),
            self._address(layer.qk_norm),
            self._address(layer.after_attention),
            self._address(layer.after_mlp),
            spec.kv_source is None,
            group,
            row,
            spec.window or 0,
            self._ropes.of(spec),
        )

    def _linear(self, linear: QuantLinear) -> CLinear:
        outputs, inputs = linear.codes.shape
        padding = -outputs % BLOCK
        codes = F.pad(linear.codes, (0, 0, 0, padding))
        return CLinear(
            self._arena.put(_packed(codes, self._kernels.inputs_together), self._kernels.raised_by),
            self._address(F.pad(linear.scale, (0, padding))),
            outputs,
            inputs,
            linear.max_code,
        )

    def _address(self, tensor: Tensor | None) -> int | None:
        if tensor is None:
            return None
        tensor = tensor.contiguous()
        self._keep.append(tensor)
        return tensor.data_ptr()


def _behind(memory: Tensor, count: int) -> int:
    """The address behind the first `count` floats."""
    return memory.data_ptr() + 4 * count


def _packed_bytes(model: QuantModel) -> int:
    """An upper bound of what the packed weights take."""
    linears = [model.embedding] if model.head is model.embedding else [model.embedding, model.head]
    for layer in model.layers:
        linears += [layer.qkv, layer.out, layer.gate_up, layer.down]
    return sum((len(one.scale) + BLOCK) * one.codes.shape[1] + _LINE for one in linears)


def _packed(codes: Tensor, together: int) -> Tensor:
    """Blocks of 16 outputs, P inputs of each together: [N, K] to [N / 16, K / P, 16, P]."""
    outputs, inputs = codes.shape
    blocks = codes.view(outputs // BLOCK, BLOCK, inputs // together, together)
    return blocks.transpose(1, 2).contiguous()


def _interleaved(gate_up: QuantLinear) -> QuantLinear:
    """Eight gates, then their eight ups, and so on, so that one block holds both."""
    half = BLOCK // 2
    order = torch.arange(len(gate_up.scale)).view(2, -1, half).transpose(0, 1).flatten()
    return QuantLinear(gate_up.codes[order], gate_up.scale[order], gate_up.max_code)
