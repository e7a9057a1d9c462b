"""PyTorch answers until the kernels are there, and nobody can tell from the bits."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING

import pytest
import torch

from backends.local.model import Chunk, Decoder, random_weights
from backends.local.model_config import ModelConfig
from backends.local.paged import SequenceKV
from backends.local.quantize import quantize
from backends.local.warming import WarmingSteps
from kvstore.device import DeviceTier

if TYPE_CHECKING:
    from backends.local.kernels.cpu import CpuKernels

_CONFIG = ModelConfig.synthetic(vocab_size=200, windows=(48, None), hidden_size=32)


def _logits(decoder: Decoder, kv: SequenceKV, ids: range) -> torch.Tensor:
    return decoder.forward([Chunk(kv, torch.tensor([*ids]))])


def _sequence() -> SequenceKV:
    return SequenceKV(DeviceTier(_CONFIG.kv_layout("int8"), {0: 8, 1: 8}))


def _packed() -> None:
    for thread in threading.enumerate():
        if thread.name == "pack-weights":
            thread.join(timeout=60)


def test_takes_over(kernels: CpuKernels) -> None:
    """In the middle of a conversation the kernels take over, and every bit is PyTorch's."""
    weights = random_weights(_CONFIG, 3)
    compiled: Future[CpuKernels | None] = Future()
    steps = WarmingSteps(quantize(_CONFIG, weights), compiled)
    warming, truth = Decoder(_CONFIG, steps), Decoder.int8(_CONFIG, weights, None)
    ours, theirs = _sequence(), _sequence()
    before = _logits(warming, ours, range(70))
    assert not steps.warm
    assert torch.equal(before, _logits(truth, theirs, range(70)))
    compiled.set_result(kernels)
    _packed()
    assert steps.warm
    assert torch.equal(_logits(warming, ours, range(70, 75)), _logits(truth, theirs, range(70, 75)))


@pytest.mark.parametrize("outcome", [None, OSError("no room for the compiler")])
def test_goes_on_without(outcome: Exception | None) -> None:
    """Without kernels PyTorch goes on."""
    weights = random_weights(_CONFIG, 3)
    compiled: Future[CpuKernels | None] = Future()
    steps = WarmingSteps(quantize(_CONFIG, weights), compiled)
    if outcome is None:
        compiled.set_result(None)
    else:
        compiled.set_exception(outcome)
    _packed()
    assert not steps.warm
    assert torch.equal(
        _logits(Decoder(_CONFIG, steps), _sequence(), range(9)),
        _logits(Decoder.int8(_CONFIG, weights, None), _sequence(), range(9)),
    )


def test_chosen_while_compiling(kernels: CpuKernels) -> None:
    """A decoder waits for no compiler, and takes kernels that are there already at once."""
    weights = random_weights(_CONFIG, 3)
    compiled: Future[CpuKernels | None] = Future()
    decoder = Decoder.int8(_CONFIG, weights, compiled)
    compiled.set_result(kernels)
    later = Decoder.int8(_CONFIG, weights, compiled)
    _packed()
    assert torch.equal(
        _logits(decoder, _sequence(), range(9)), _logits(later, _sequence(), range(9))
    )
