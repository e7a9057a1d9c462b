"""Every kernel compiles for an H100 without one: no rounding is fused, tensor cores are used."""

from __future__ import annotations

import importlib.util
import os
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from backends.api import Sampling
from backends.local.model import random_weights
from backends.local.model_config import ModelConfig
from backends.local.quantize import quantize
from tests.backends.local.drawing import ask

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is missing"),
    pytest.mark.skipif(
        os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter compiles nothing"
    ),
]

EXACT_FACTORS = ("0fBF318000", "0f4A800000")  # those of `arithmetic`: -0.693359375 and 2**22
SHARED_BYTES = 227 << 10  # what a block of an H100 can have
GEMMA = replace(
    ModelConfig.synthetic(
        vocab_size=512, hidden_size=640, q_heads=4, kv_heads=1, head_dim=256, windows=(512, None)
    ),
    activation="gelu_tanh",
    sandwich_norms=True,
)


def compiled(fn: Any, args: tuple[object, ...], given: dict[str, Any]) -> Any:
    """What triton makes of one launch, for compute capability 9.0."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = [parameter.name for parameter in fn.params]
    bound = dict(zip(names, args, strict=False))
    bound.update((k, v) for k, v in given.items() if k in names)
    types = {
        torch.int8: "*i8",
        torch.int16: "*i16",
        torch.int32: "*i32",
        torch.int64: "*i64",
        torch.float64: "*fp64",
        torch.float16: "*fp16",
        torch.float32: "*fp32",
    }
    signature, constants, hints = {}, {}, {}
    for index, parameter in enumerate(fn.params):
        value, name = bound[parameter.name], parameter.name
        if isinstance(value, torch.Tensor):
            signature[name], aligned = types[value.dtype], True
        elif parameter.is_constexpr or (value == 1 and not parameter.do_not_specialize):
            signature[name], constants[(index,)], aligned = "constexpr", value, False
        else:
            signature[name] = "i32"
            aligned = value % 16 == 0 and not parameter.do_not_specialize
        if aligned:
            hints[(index,)] = [["tt.divisibility", 16]]
    options = {k: v for k, v in given.items() if k not in (*names, "grid", "warmup")}
    source = ASTSource(fn=fn, signature=signature, constexprs=constants, attrs=hints)
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)


def test_every_launch_compiles_for_hopper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A decode, a mixed step and both looks of a draw: nothing is fused to lose a rounding, and
    products run on tensor cores within a block's shared memory."""
    from triton.runtime.jit import JITFunction

    from backends.local.gpu import draws
    from backends.local.gpu.launches import Launches
    from backends.local.gpu.steps import GpuSteps
    from backends.local.gpu.trial import differences

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    made: dict[str, Any] = {}

    def record(fn: Any, *args: object, **given: Any) -> None:
        key = f"{fn.fn.__name__} {[a for a in args if isinstance(a, int)]} {given}"
        if key not in made:
            made[key] = compiled(fn, args, given)

    monkeypatch.setattr(JITFunction, "run", record)
    model = quantize(GEMMA, random_weights(GEMMA, 0))
    steps = GpuSteps(model, "cpu", context=1024)
    steps._launches = Launches(steps._model, packed=True, chained=True)
    # Nothing runs, so the answers differ; what is asked for is the launches of both steps.
    differences(model, steps, [(70, 1)])
    differences(model, steps, [(1, 1)])
    for look in draws.LOOKS:
        draws.launch(torch.zeros(2, 262_144), [ask(Sampling(), 0.5, (5,), (6,)), None], look)
    names = {key.split()[0] for key in made}
    assert names == {
        "_adjust",
        "_best_of_block",
        "_best_of_groups",
        "_best_of_row",
        "_collect",
        "_linear",
        "_pick",
        "add_and_norm",
        "attend_chunks",
        "decode_spans",
        "embed_and_norm",
        "gate_rows",
        "merge_spans",
        "quantize_rows",
        "split_heads",
    }
    for key, kernel in made.items():
        code = kernel.asm["ptx"]
        fused = re.findall(r"\bfma\.rn\.f32.*", code)
        assert all(re.search("|".join(EXACT_FACTORS), line) for line in fused), key
        assert kernel.metadata.shared <= SHARED_BYTES, key
        if key.split()[0] in ("_linear", "decode_spans", "attend_chunks"):
            assert re.search(r"\bw?g?mma\.", code), key
