"""A device proves itself before it serves: a slice of the model must give the reference's bits.

Compilers, drivers and cards differ; KV that one of them made is read by another. So a model's
kernels are compared with the PyTorch reference on a few of its layers before they are used at all.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import structlog
import torch

from backends.api import Sampling
from backends.local.int8 import Int8Steps
from backends.local.kernels.batch import Batch
from backends.local.kernels.pages import PAGE_TOKENS, GroupTable
from backends.local.sampling import Sampler

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from backends.local.gpu.steps import GpuSteps
    from backends.local.quantize import QuantLinear, QuantModel

__all__ = ["differences", "excerpt", "trusted_steps"]

_log = structlog.get_logger()

_VOCABULARY = 512
_COUNTS = ((70, 270), (1, 1), (1, 1), (1, 1), (40, 1))
"""New tokens of two sequences, step by step: a prefill of many rows, a graph's three uses over one
span and two, and a chunk beside a decode in few rows."""

_SAMPLINGS = (
    Sampling(temperature=0.75, top_p=0.9, min_p=0.05, repetition_penalty=1.1),
    Sampling(temperature=1.0, top_p=0.95),
    Sampling(temperature=0.8, top_k=20, repetition_penalty=0.9),
)


def trusted_steps(model: QuantModel, *, context: int) -> GpuSteps | None:
    """The model's steps on the CUDA device; None, with a warning, where it cannot be trusted.

    Takes seconds, most of them compilation that a first step would need anyway.
    """
    try:
        from backends.local.gpu.steps import GpuSteps
    except ImportError as error:
        _log.warning("gpu_missing", reason=str(error), effect="the CPU serves")
        return None
    try:
        small = excerpt(model)
        wrong = differences(small, GpuSteps(small))
        if wrong:
            _log.error("gpu_untrusted", reason=wrong, effect="the CPU serves")
            return None
        steps = GpuSteps(model, context=context)
    except Exception:
        # Whatever a driver, a compiler or a full card raises: the CPU gives the same answers.
        _log.exception("gpu_failed", effect="the CPU serves")
        return None
    _log.info("gpu_trusted", name=torch.cuda.get_device_name())
    return steps


def excerpt(model: QuantModel) -> QuantModel:
    """A small model of the same sizes: one layer of each kind and the first rows of the vocabulary.

    On the host, whatever device the model lies on.
    """
    config = model.config
    chosen: dict[tuple[object, ...], int] = {}
    for index, spec in enumerate(config.layers):
        source = spec.kv_source
        if source is not None:
            chosen.setdefault(("source", spec.window), source)
        kind = (spec.window, spec.rope_theta, spec.rope_scale, source is None)
        if source is None or chosen[("source", spec.window)] == source:
            chosen.setdefault(kind, index)
    indexes = sorted(set(chosen.values()))
    layers = []
    for index in indexes:
        layer = model.layers[index]
        source = layer.spec.kv_source
        spec = replace(layer.spec, kv_source=None if source is None else indexes.index(source))
        layers.append(
            replace(
                layer,
                spec=spec,
                qkv=_host(layer.qkv),
                out=_host(layer.out),
                gate_up=_host(layer.gate_up),
                down=_host(layer.down),
                before_attention=layer.before_attention.cpu(),
                before_mlp=layer.before_mlp.cpu(),
                qk_norm=_host_tensor(layer.qk_norm),
                after_attention=_host_tensor(layer.after_attention),
                after_mlp=_host_tensor(layer.after_mlp),
            )
        )
    rows = min(_VOCABULARY, config.vocab_size)
    embedding = _host(model.embedding, rows)
    return replace(
        model,
        config=replace(config, vocab_size=rows, layers=tuple(layer.spec for layer in layers)),
        embedding=embedding,
        embed_factor=model.embed_factor.cpu(),
        head=embedding if model.head is model.embedding else _host(model.head, rows),
        norm=model.norm.cpu(),
        layers=tuple(layers),
    )


def differences(
    model: QuantModel, steps: GpuSteps, counts: Sequence[tuple[int, ...]] = _COUNTS
) -> str:
    """Where `steps` and the PyTorch reference differ in a bit of logits or KV or a token drawn; ""
    if nowhere.

    `counts`: new tokens of each sequence, step by step, none of them 0. Pages hold whatever was
    there before.
    """
    config = model.config
    layout = config.kv_layout("int8")
    truth = Int8Steps(model)
    generator = torch.Generator().manual_seed(1)
    sequences = len(counts[0])
    totals = [sum(step[b] for step in counts) for b in range(sequences)]
    width = max(-(-total // PAGE_TOKENS) for total in totals)
    slots = torch.randperm(sequences * width, generator=generator).int().view(sequences, width)
    ours, theirs = [], []
    for group in layout.groups:
        shape = (sequences * width, PAGE_TOKENS * group.bytes_per_token)
        page = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
        ours.append(page)
        theirs.append(page.clone().to(steps.device))
    lengths = [0] * sequences
    for number, step in enumerate(counts):
        tokens = torch.randint(0, config.vocab_size, (sum(step),), generator=generator).int()
        before, lengths = lengths, [a + b for a, b in zip(lengths, step, strict=True)]
        with torch.inference_mode():
            logits = truth.run(_batch(tokens, before, lengths, slots, ours))
            found = steps.run(_batch(tokens, before, lengths, slots, theirs))
        if not torch.equal(logits, found.cpu()):
            worst = float((logits - found.cpu()).abs().max())
            return f"step {number}: logits differ by up to {worst:g}"
        draws = [
            Sampler(replace(_SAMPLINGS[(number + b) % len(_SAMPLINGS)], seed=b), [1, 2], [3]).ask()[
                0
            ]
            for b in range(sequences)
        ]
        if steps.draw(found, draws)() != truth.draw(logits, draws)():
            return f"step {number}: draws differ"
        if not all(torch.equal(a, b.cpu()) for a, b in zip(ours, theirs, strict=True)):
            return f"step {number}: KV differs"
    return ""


def _batch(
    tokens: Tensor, before: list[int], lengths: list[int], slots: Tensor, pages: list[Tensor]
) -> Batch:
    starts = [0]
    positions = []
    for begin, end in zip(before, lengths, strict=True):
        starts.append(starts[-1] + end - begin)
        positions.append(torch.arange(begin, end, dtype=torch.int32))
    first_page = torch.zeros(len(lengths), dtype=torch.int32)
    return Batch(
        tokens=tokens,
        positions=torch.cat(positions),
        starts=torch.tensor(starts, dtype=torch.int32),
        lengths=torch.tensor(lengths, dtype=torch.int32),
        wanted=torch.tensor([end - 1 for end in starts[1:]], dtype=torch.int32),
        tables=tuple(GroupTable(each, slots, first_page) for each in pages),
        end=max(lengths),
    )


def _host(linear: QuantLinear, rows: int | None = None) -> QuantLinear:
    return replace(linear, codes=linear.codes[:rows].cpu(), scale=linear.scale[:rows].cpu())


def _host_tensor(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.cpu()
