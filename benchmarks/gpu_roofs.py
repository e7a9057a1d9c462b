"""How near the kernels come to the card's roofs: its bandwidth and its rate of operations.

Both roofs are measured in the same run: a copy of 2 GiB, and 8192-cubed matrix products. Kernels
are timed by the profiler inside steps of a real model, so what is counted is what serves.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from backends.local.synthetic import int8_model, kv_bytes, synthetic_config
from benchmarks.gpu_int8 import Pool, int8_steps, step_seconds

if TYPE_CHECKING:
    from collections.abc import Callable

    from backends.local.kernels.batch import Batch, Steps
    from backends.local.model_config import ModelConfig

__all__ = ["card", "roofs"]

MODEL, STREAMS, CONTEXT, PREFILL = "1b-mqa", 64, 5600, 4096


def card() -> dict[str, float | str]:
    """The card and its roofs as measured: a copy's bytes a second, products' operations."""
    source = torch.empty(1 << 31, dtype=torch.uint8, device="cuda").random_(0, 256)
    target = torch.empty_like(source)
    copied = 2 * source.nbytes / _seconds(lambda: target.copy_(source))
    size = 8192
    a, b = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in "ab")
    half = 2 * size**3 / _seconds(lambda: a @ b)
    whole = [torch.empty(size, size, device="cuda", dtype=torch.int8) for _ in "ab"]
    for codes in whole:
        codes.random_(-127, 128)
    right = whole[1].t()
    int8 = 2 * size**3 / _seconds(lambda: torch._int_mm(whole[0], right))
    return {
        "name": torch.cuda.get_device_name(),
        "memory_gib": torch.cuda.mem_get_info()[1] / 2**30,
        "torch": torch.__version__,
        "copy_bytes_a_second": copied,
        "bf16_operations_a_second": half,
        "int8_operations_a_second": int8,
    }


def roofs(bandwidth: float, int8_rate: float) -> dict[str, object]:
    """Each kernel's and the whole step's share of its roof, for the 1b model."""
    from backends.local.gpu.steps import GpuSteps  # needs triton

    config = synthetic_config(MODEL)
    model = int8_model(config, 1, "cuda")
    steps = int8_steps(model, "cuda")
    plain = GpuSteps(model, "cuda", graphs=False)
    pool = Pool(config, STREAMS, CONTEXT + 1, PREFILL, "cuda")
    decode, prefill = pool.same(STREAMS, CONTEXT - 1, 1), pool.same(1, 0, PREFILL)
    whole: dict[str, object] = {}
    for context in (1024, CONTEXT):
        seconds = step_seconds(steps, pool.same(STREAMS, context - 1, 1), "cuda", 20)
        moved = _step_bytes(config, context)
        whole[str(context)] = {
            "seconds": seconds,
            "bytes": moved,
            "share_of_bandwidth": moved / seconds / bandwidth,
            "tokens_a_second": STREAMS / seconds,
        }
    products = {
        f"{kind}_{name}": figures
        for kind, batch, rows in (("decode", decode, STREAMS), ("prefill", prefill, PREFILL))
        for name, figures in _products(plain, batch, config, rows, bandwidth, int8_rate).items()
    }
    return {
        "model": MODEL,
        "streams": STREAMS,
        "step": whole,
        "decode_attention": _attention(plain, decode, config, bandwidth),
        "products": products,
        "by_kernel_us": {
            "decode": _by_kernel(plain, decode),
            "prefill": _by_kernel(plain, prefill),
        },
    }


def _step_bytes(config: ModelConfig, context: int) -> int:
    """Bytes that a decode step must read: every weight once, every stream's KV."""
    weights = sum(math.prod(s) for s in config.tensor_shapes().values() if len(s) == 2)
    return weights + STREAMS * kv_bytes(config, context, value_bytes=1, scale_bytes=2)


def _attention(
    steps: Steps, batch: Batch, config: ModelConfig, bandwidth: float
) -> dict[str, float]:
    """Decode attention of a layer: the kernel that reads the pages, and with the merge to codes.

    On Hopper `merge_spans` makes the codes as well.
    """
    moved = STREAMS * kv_bytes(config, CONTEXT, value_bytes=1, scale_bytes=2) / len(config.layers)
    taken = _kernels(steps, batch)
    pages = sum(t for name, t in taken if "decode_spans" in name) / len(config.layers)
    behind = ("merge_spans", "quantize_rows")
    merge = sum(t for name, t in taken if name.startswith(behind)) / len(config.layers)
    return {
        "bytes": moved,
        "pages_seconds": pages,
        "merge_seconds": merge,
        "share_of_bandwidth": moved / (pages + merge) / bandwidth,
        "share_of_bandwidth_pages_alone": moved / pages / bandwidth,
    }


def _products(
    steps: Steps,
    batch: Batch,
    config: ModelConfig,
    rows: int,
    bandwidth: float,
    int8_rate: float,
) -> dict[str, dict[str, float]]:
    """int8 products by layer kind, in the order that a layer runs them; the head comes last.

    A weight that meets two digits of an activation counts as two products.
    """
    hidden, inner = config.hidden_size, config.intermediate_size
    queries = config.q_heads * config.head_dim
    sizes = {
        "qkv": (queries + 2 * config.kv_heads * config.head_dim, hidden),
        "out": (hidden, queries),
        "gate_up": (2 * inner, hidden),
        "down": (hidden, inner),
    }
    names = ("_linear", "sum_products", "gate_products")  # Triton's, and those of Hopper
    taken = [t for name, t in _kernels(steps, batch) if any(each in name for each in names)]
    if len(taken) != len(sizes) * len(config.layers) + 1:
        raise RuntimeError(f"{len(taken)} products in a step of {len(config.layers)} layers")
    found = {}
    for at, (name, (outputs, inputs)) in enumerate(sizes.items()):
        times = sorted(taken[at : -1 : len(sizes)])
        seconds = times[len(times) // 2]
        digits = 2 if name == "down" else 1
        moved = outputs * inputs + digits * rows * inputs + 4 * rows * outputs
        done = 2 * digits * rows * outputs * inputs
        found[name] = {
            "rows": rows,
            "outputs": outputs,
            "inputs": inputs,
            "seconds": seconds,
            "share_of_bandwidth": moved / seconds / bandwidth,
            "share_of_int8_rate": done / seconds / int8_rate,
        }
    return found


def _by_kernel(steps: Steps, batch: Batch) -> dict[str, float]:
    """Microseconds of a step by kernel."""
    total: dict[str, float] = {}
    for name, seconds in _kernels(steps, batch):
        total[name] = total.get(name, 0.0) + seconds * 1e6
    return dict(sorted(total.items(), key=lambda item: -item[1]))


def _kernels(steps: Steps, batch: Batch) -> list[tuple[str, float]]:
    """Name and seconds of every kernel of a step, in order."""
    with torch.inference_mode():
        for _ in range(2):
            steps.run(batch)
        torch.cuda.synchronize()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            steps.run(batch)
            torch.cuda.synchronize()
    events = [e for e in profile.events() or [] if e.device_type.name == "CUDA"]
    events.sort(key=lambda e: e.time_range.start)
    return [(e.name, e.time_range.elapsed_us() / 1e6) for e in events]


def _seconds(call: Callable[[], object]) -> float:
    """The median of ten timings by events, after three that do not count."""
    for _ in range(3):
        call()
    taken: list[float] = []
    for _ in range(10):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in "be")  # type: ignore[no-untyped-call]
        begin.record()
        call()
        end.record()
        torch.cuda.synchronize()
        taken.append(begin.elapsed_time(end) / 1e3)
    return sorted(taken)[5]
