"""Shares of roofs are counted from kernel times as they should be; the times are invented here."""

from __future__ import annotations

from pathlib import Path

import pytest

from backends.local.int8 import Int8Steps
from backends.local.synthetic import int8_model, synthetic_config
from benchmarks import gpu_roofs
from benchmarks.gpu_int8 import Pool

CONFIG = synthetic_config("1m-mqa")
LAYERS = len(CONFIG.layers)


def test_kernel_names() -> None:
    """The kernels that are looked for by name in a profile are called so."""
    folder = Path(__file__).parents[2] / "backends/local/gpu"
    for module, kernel in (
        ("gemm", "_linear"),
        ("attention", "decode_spans"),
        ("attention", "merge_spans"),
    ):
        assert f"\ndef {kernel}(" in (folder / f"{module}.py").read_text()


def test_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products are told apart by their order in a layer; the head, the last, is left out."""
    layer = [("heads", 9.0), *(("_linear", t) for t in (1.0, 2.0, 3.0, 4.0))]
    monkeypatch.setattr(gpu_roofs, "_kernels", lambda *_: layer * LAYERS + [("_linear", 99.0)])
    steps = Int8Steps(int8_model(CONFIG, 1))
    batch = Pool(CONFIG, 1, 64, 64, "cpu").same(1, 0, 8)
    found = gpu_roofs._products(steps, batch, CONFIG, 8, bandwidth=1e3, int8_rate=1e6)
    assert [p["seconds"] for p in found.values()] == [1.0, 2.0, 3.0, 4.0]
    down = found["down"]
    inner, hidden = CONFIG.intermediate_size, CONFIG.hidden_size
    assert (down["inputs"], down["outputs"]) == (inner, hidden)
    moved = inner * hidden + 2 * 8 * inner + 4 * 8 * hidden
    assert down["share_of_bandwidth"] == pytest.approx(moved / 4.0 / 1e3)
    assert down["share_of_int8_rate"] == pytest.approx(4 * 8 * inner * hidden / 4.0 / 1e6)


def test_products_that_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step with other products than a layer's four is refused, not sorted wrongly."""
    monkeypatch.setattr(gpu_roofs, "_kernels", lambda *_: [("_linear", 1.0)] * 7)
    steps = Int8Steps(int8_model(CONFIG, 1))
    batch = Pool(CONFIG, 1, 64, 64, "cpu").same(1, 0, 8)
    with pytest.raises(RuntimeError, match="7 products"):
        gpu_roofs._products(steps, batch, CONFIG, 8, bandwidth=1e3, int8_rate=1e6)


def test_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    """Decode attention reads a layer's KV of every stream; the merge adds time, not bytes."""
    layer = [("decode_spans", 2.0), ("merge_spans", 1.0), ("_linear", 50.0)]
    monkeypatch.setattr(gpu_roofs, "_kernels", lambda *_: layer * LAYERS)
    steps = Int8Steps(int8_model(CONFIG, 1))
    batch = Pool(CONFIG, 1, 64, 64, "cpu").same(1, 0, 8)
    found = gpu_roofs._attention(steps, batch, CONFIG, bandwidth=1e6)
    moved = 64 * 5600 * 2 * (CONFIG.head_dim + 2)
    assert found["bytes"] == moved
    assert found["share_of_bandwidth"] == pytest.approx(moved / 3.0 / 1e6)
    assert found["share_of_bandwidth_pages_alone"] == pytest.approx(moved / 2.0 / 1e6)
