"""The CUDA kernels of Hopper against plain PyTorch: the same bits. They need such a device."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from backends.local.kernels import reference
from backends.local.kernels.pages import GroupTable
from backends.local.model import random_weights
from backends.local.model_config import ModelConfig
from backends.local.quantize import QuantLinear, narrowed, quantize
from tests.backends.local.gpu.test_kernels import codes_of, digits_of, drawn, whole

if TYPE_CHECKING:
    from torch import Tensor

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is missing"
)
GEMMA = ModelConfig.synthetic(hidden_size=640, q_heads=4, head_dim=256)


@pytest.fixture(scope="module")
def hopper(device: str) -> str:
    if device == "cpu" or torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("no Hopper device; Triton's twins of these kernels run everywhere")
    return device


TAKEN = {
    "float": ctypes.c_float,
    "int": int,
    "long long": ctypes.c_longlong,
    "float*": torch.float32,
    "int*": torch.int32,
    "signed char*": torch.int8,
    "Taken*": torch.int32,
}


def parameters() -> dict[str, list[str]]:
    """The types of every kernel's parameters, as the files say."""
    from backends.local.gpu import cuda

    found = {}
    for path in Path(cuda.__file__).parent.glob("*.cu"):
        code = re.sub(r"//.*", "", path.read_text())
        for name, given in re.findall(r'extern "C".*?(\w+)\(([^()]*)\) {', code, re.DOTALL):
            kinds = []
            for each in given.split(","):
                kind, _ = re.fullmatch(r"(.*?)(\w+)", " ".join(each.split())).groups()  # type: ignore[union-attr]
                kind = re.sub(r"const |__grid_constant__ |<\w+>", "", kind).replace(" *", "*")
                kinds.append(kind.strip())
            found[name] = kinds
    return found


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="triton is left out here")
@pytest.mark.parametrize("dim", [128, 256])
def test_every_launch_gives_what_its_kernel_takes(
    dim: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A decode, a chunk beside one in few rows, and both in many, without a device."""
    from triton.runtime.jit import JITFunction

    from backends.local.gpu import cuda
    from backends.local.gpu.hopper import HopperLaunches
    from backends.local.gpu.steps import GpuSteps
    from backends.local.gpu.trial import differences

    taken, launched = parameters(), set()

    class Recorder:
        def __init__(self, name: str) -> None:
            self.name = name

        def launch(self, grid: tuple[int, ...], threads: int, *args: Any, **given: object) -> None:
            launched.add(self.name)
            assert len(args) == len(taken[self.name]), self.name
            assert 32 <= threads <= 1024
            assert threads % 32 == 0
            for kind, arg in zip(taken[self.name], args, strict=True):
                if isinstance(arg, torch.Tensor):
                    assert arg.dtype == TAKEN[kind], (self.name, kind)
                elif arg is None:
                    assert kind.endswith("*")
                elif kind in TAKEN:
                    assert isinstance(arg, TAKEN[kind]), (self.name, kind)  # type: ignore[arg-type]
                else:
                    assert type(arg).__name__.strip("_") == kind

    def kernels(source: str, shared: dict[str, int], **defines: int) -> dict[str, Recorder]:
        return {name: Recorder(name) for name in shared}

    monkeypatch.setattr(cuda, "kernels", kernels)
    monkeypatch.setattr(cuda, "boxes", lambda *args: cuda.TensorMap())
    monkeypatch.setattr(JITFunction, "run", lambda *args, **given: None)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda *a: SimpleNamespace(multi_processor_count=132)
    )
    config = replace(GEMMA, hidden_size=512, head_dim=dim, sandwich_norms=True)
    model = quantize(config, random_weights(config, 0))
    steps = GpuSteps(model, "cpu", context=1024)
    steps._launches = HopperLaunches(steps._model, packed=True, chained=True)
    for counts in ((1, 1), (20, 1), (70, 1)):
        differences(model, steps, [counts])  # the answers differ, since nothing runs
    assert launched == (set(taken) if dim == 128 else set(taken) - {"split_heads"})


def test_triton_serves_where_nvrtc_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The log says why; the twins give the same bits."""
    from backends.local.gpu import cuda
    from backends.local.gpu.hopper import launches_for
    from backends.local.gpu.launches import Launches

    def missing(*args: object, **given: object) -> None:
        raise OSError("there is no libnvrtc.so.13")

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(cuda, "kernels", missing)
    config = replace(GEMMA, vocab_size=64)
    model = quantize(config, random_weights(config, 0))
    assert type(launches_for(model, torch.device("cuda"), graphs=True)) is Launches


def test_all_compile_for_every_shape() -> None:
    """Where NVRTC is, with or without a device."""
    from backends.local.gpu import cuda

    try:
        for digits, groups in ((1, 1), (1, 2), (2, 1), (2, 2)):
            cuda.binary("products.cu", (("DIGITS", digits), ("GROUPS", groups)))
            cuda.binary("gates.cu", (("DIGITS", digits), ("TANH", groups - 1)))
    except OSError as error:
        pytest.skip(f"no NVRTC: {error}")
    for dim, heads, blocks in ((128, 16, 3), (128, 1, 3), (256, 4, 1), (256, 16, 1)):
        sizes = (("D", dim), ("G", heads), ("BLOCKS", blocks), ("SHARES", 1 + (heads > 1)))
        cuda.binary("decode.cu", sizes)
        cuda.binary("merge.cu", sizes)
    cuda.binary("heads.cu", ())
    for hidden, size, inner in ((48, 512, 144), (2048, 2048, 7040), (5120, 8192, 13824)):
        cuda.binary("rows.cu", (("N", hidden), ("SIZE", size), ("INNER", inner)))


@pytest.mark.parametrize("multiprocessors", [132, 1])
@pytest.mark.parametrize("window", [None, 70, 300])
@pytest.mark.parametrize(("group", "dim"), [(16, 128), (5, 128), (4, 256)])
def test_decode_attention_is_the_reference_s(
    hopper: str,
    group: int,
    dim: int,
    window: int | None,
    multiprocessors: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Sequences of several lengths, pages in any order; one without a new token is left alone.

    Blocks for all spans, and a few that take one after another, which leave the count of what they
    took as they found it: the next launch gives the same.
    """
    from backends.local.gpu import hopper_kernels
    from backends.local.gpu.scratch import LayerPages

    monkeypatch.setattr(hopper_kernels, "_MULTIPROCESSORS", multiprocessors)
    lengths, width = [650, 64, 2900, 5], 46
    starts = [0, 1, 1, 2, 3]  # the second sequence has no row
    row = 2 * 64 * (dim + 2)
    pages = whole(0, 256, 4 * width, 2 * row).to(torch.uint8)
    for begin in (2 * 64 * dim, row + 2 * 64 * dim):
        scales = pages[:, begin : begin + 256].view(torch.float16)
        scales.copy_(drawn(*scales.shape).abs())
    slots = torch.randperm(4 * width).int().view(4, width)
    ints = [torch.tensor(each, dtype=torch.int32) for each in (starts, lengths, [0] * 4)]
    used = [0, 2, 3]
    q = drawn(3, group, dim)
    table = GroupTable(pages, slots[used], ints[2][used])
    expected = reference.attend(q, table, 1, 1, torch.arange(4), ints[1][used], window, 0.25)
    there = pages.to(hopper).view(torch.int8)
    reads = 3 if window else -(-width // 4)
    kv = LayerPages(
        slots.to(hopper).flatten(), ints[2].to(hopper), there, width, row, window or 0, reads
    )
    codes, q_scale = reference.quantize_rows(q, reference.QUERY_CODE)
    queries = codes.to(torch.int8).to(hopper), (q_scale * 0.25).to(hopper)
    wanted, wanted_scale = reference.quantize_rows(expected.flatten(1), 127)
    starts_there, lengths_there = ints[0].to(hopper), ints[1].to(hopper)
    taken = torch.zeros(2, dtype=torch.int32, device=hopper)
    decode = hopper_kernels.Decode(dim, group)
    for _ in range(2):
        parts = 4 * reads * group
        tops, totals, outs = (torch.zeros(n, device=hopper) for n in (parts, parts, parts * dim))
        given = tops, totals, outs
        digits = torch.zeros((2, 3 * group * dim), dtype=torch.int8, device=hopper)
        scale = torch.zeros(3, device=hopper)
        decode.spans(queries, starts_there, lengths_there, kv, given, taken, chained=False)
        decode.merge(given, starts_there, lengths_there, kv, digits, scale, chained=False)
        assert torch.equal(digits[1].cpu().view(3, -1).float(), wanted)
        assert torch.equal(scale.cpu(), wanted_scale)
    assert not taken.any()


def products(linear: QuantLinear, activation: Any) -> Any:
    from backends.local.gpu.hopper_kernels import Products

    layer = SimpleNamespace(qkv=linear, out=linear, gate_up=linear, down=linear)
    config = replace(GEMMA, activation=activation)
    return Products(SimpleNamespace(config=config, layers=[layer]))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("outputs", "inputs", "most", "cut"),
    [
        (48, 48, 127, (2, 1)),
        (2048, 2048, 127, (1, 2)),  # 64 blocks of eight stages
        (2048, 7040, 8128, (2, 8)),  # 128 blocks either way: the wider
        (17000, 1536, 127, (2, 1)),  # more blocks than multiprocessors either way
    ],
)
def test_products_fill_the_device_with_blocks_of_six_stages(
    outputs: int, inputs: int, most: int, cut: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What sums are cut into, without a device."""
    from backends.local.gpu import cuda

    monkeypatch.setattr(cuda, "kernels", lambda *args, **given: {})
    codes = torch.empty((outputs, inputs), dtype=torch.int8)
    linear = QuantLinear(codes, torch.empty(outputs), most)
    assert products(linear, "silu").cut(linear) == cut


@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
@pytest.mark.parametrize(
    ("tokens", "outputs", "inputs", "most"),
    [
        (1, 48, 48, 127),
        (5, 208, 1552, 8128),
        (64, 640, 2048, 127),
        (33, 256, 7040, 2032),
        (64, 2048, 7040, 8128),
    ],
)
def test_products_are_exact_and_gates_the_reference_s(
    hopper: str, tokens: int, outputs: int, inputs: int, most: int, activation: str
) -> None:
    """Split sums add up to the whole numbers' product; gated, tiny and very large rows included."""
    codes = whole(-most, most + 1, tokens, inputs)
    weight = whole(-127, 128, outputs, inputs, seed=1)
    scale = drawn(outputs, seed=2).abs()
    linear = QuantLinear(weight.to(torch.int8).to(hopper), scale.to(hopper), most)
    product = products(linear, activation)
    splits = product.splits(linear)
    digits = digits_of(codes) if most > 127 else torch.stack([codes, codes]).flatten(1)
    padded = torch.zeros(2, tokens * inputs + -tokens * inputs % 128, dtype=torch.int8)
    padded[:, : tokens * inputs] = digits
    there = padded.to(hopper)
    out = torch.full((splits * tokens * outputs,), -1, dtype=torch.int32, device=hopper)
    assert product.sums(there, tokens, linear, out, chained=False) == splits
    sums = codes @ weight.T
    assert torch.equal(out.cpu().view(splits, tokens, outputs).sum(0), sums)

    row_scale = torch.logspace(-38, 2, tokens) if tokens > 1 else torch.tensor([1e-6])
    gated = torch.full((tokens * outputs // 2,), -1.0, device=hopper)
    product.gated(there, tokens, linear, row_scale.to(hopper), gated, chained=False)
    both = sums.float() * row_scale.unsqueeze(1) * scale
    assert torch.equal(gated.cpu().view(tokens, -1), reference.gate(both, activation))


@pytest.mark.parametrize(("size", "splits"), [(48, 1), (640, 3), (2048, 8), (5120, 5)])
def test_rows_are_the_reference_s(hopper: str, size: int, splits: int) -> None:
    """x plus the normed product and its norm's codes, of all rows or wanted ones."""
    from backends.local.gpu.hopper_kernels import Rows

    count, eps = 4, GEMMA.rms_eps
    sums = whole(-1 << 24, 1 << 24, splits, count, size).int()
    in_scale, scale = drawn(count).abs() * 1e-4, drawn(size, seed=1).abs() * 1e-3
    after, weight, x = drawn(size, seed=2), drawn(size, seed=3), drawn(count, size, seed=4)
    rows = Rows(replace(GEMMA, hidden_size=size, intermediate_size=size))

    def on(tensor: Tensor) -> Tensor:
        return tensor.to(hopper)

    for norm, wanted in ((after, None), (None, None), (after, [2, 0])):
        h = sums.sum(0).int().float() * in_scale.unsqueeze(1) * scale
        total = x + (h if norm is None else reference.rms_norm(h, norm, eps))
        codes, row_scale = reference.quantize_rows(reference.rms_norm(total, weight, eps), 127)
        found, out = x.clone().to(hopper), torch.zeros(count, device=hopper)
        digits = torch.zeros((2, count * size), dtype=torch.int8, device=hopper)
        pick = wanted or list(range(count))
        rows.add_and_norm(
            on(sums),
            splits,
            count,
            (on(in_scale), on(scale), out),
            found,
            (None if norm is None else on(norm), on(weight)),
            digits,
            on(torch.tensor(wanted, dtype=torch.int32)) if wanted else None,
            len(pick),
            chained=False,
        )
        assert torch.equal(found.cpu(), x if wanted else total)
        assert torch.equal(digits[1].cpu().view(count, -1)[: len(pick)].float(), codes[pick])
        assert torch.equal(out.cpu()[: len(pick)], row_scale[pick])


@pytest.mark.parametrize("size", [48, 640, 7040])
@pytest.mark.parametrize("most", [127, 2032, 8128])
@pytest.mark.parametrize("loud", [0, 1, 9])
def test_gates_codes_are_the_reference_s(hopper: str, size: int, most: int, loud: int) -> None:
    """Of rows without loud inputs, with a few, and with nothing else; of zeros as well."""
    from backends.local.gpu.hopper_kernels import Rows

    x = drawn(6, size)
    x[:, :loud] *= torch.logspace(0, 5, 6).unsqueeze(1)
    x[5] = 0.0
    x[4] = -2.5
    rows = Rows(replace(GEMMA, hidden_size=48, intermediate_size=size))
    digits = torch.zeros((2, 6 * size), dtype=torch.int8, device=hopper)
    out = torch.zeros(6, device=hopper)
    rows.quantize_gates(x.to(hopper), 6, digits, out, most, chained=False)
    codes, row_scale = reference.activation_codes(x, most)
    found = digits[1].cpu().view(6, -1) if most == 127 else codes_of(digits, 6)
    assert torch.equal(found.float(), codes)
    assert torch.equal(out.cpu(), row_scale)


@pytest.mark.parametrize("narrow", [True, False])
@pytest.mark.parametrize("bare", [True, False])
def test_steps_with_heads_of_128_are_the_reference_s(hopper: str, bare: bool, narrow: bool) -> None:
    """Chunks beside decodes, decodes over several spans; window, global and shared KV."""
    from backends.local.gpu.hopper import HopperLaunches
    from backends.local.gpu.steps import GpuSteps
    from backends.local.gpu.trial import differences

    config = ModelConfig.synthetic(
        vocab_size=203, hidden_size=512, q_heads=6, head_dim=128, windows=(300, None, 300),
        kv_sources={2: 0}, qk_norm=not bare,
    )  # fmt: skip
    config = replace(config, sandwich_norms=not bare)
    model = quantize(config, random_weights(config, 3))
    model = narrowed(model) if narrow else model
    steps = GpuSteps(model, hopper, context=1024)
    assert isinstance(steps._launches, HopperLaunches)
    assert differences(model, steps, [(70, 600), (1, 1), (1, 1), (1, 1), (1, 1)]) == ""
