"""Packaged weights: found, checked, converted once, and never left half."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from typing import TYPE_CHECKING

import gguf
import numpy as np
import pytest
import safetensors.numpy

from backends.local import checkpoint, packaged
from backends.local.checkpoint import load
from backends.local.errors import ModelError, UnsupportedModel, WeightsDamaged, WeightsMissing
from backends.local.packaged import MANIFEST, PACKAGED, PackagedModel, prepare, verify
from backends.local.progress import NoProgress
from backends.local.quantize import quantize
from backends.local.smoothing import SAMPLE, SAMPLE_FILE
from backends.local.tokenizer import Tokenizer

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PackagedModel:
    """A packaged model of a few kilobytes: a Llama in an importable package, in two pieces."""
    package = tmp_path / "site" / "toy_weights"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('never imported')\n")
    whole = _toy_gguf(tmp_path / "toy.gguf").read_bytes()
    (package / "a.bin").write_bytes(whole[:1000])
    (package / "b.bin").write_bytes(whole[1000:])
    model = PackagedModel(
        name="toy",
        distribution="toy-weights",
        files=(("toy_weights", "a.bin"), ("toy_weights", "b.bin")),
        sha256=packaged._sha256(tmp_path / "toy.gguf"),
        profile="transcript",
        notice="Toys are free.",
    )
    monkeypatch.syspath_prepend(str(package.parent))
    monkeypatch.setitem(PACKAGED, "toy", model)
    return model


def _toy_gguf(path: Path) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in (
        ("embedding_length", 16),
        ("block_count", 2),
        ("feed_forward_length", 24),
        ("context_length", 128),
        ("attention.head_count", 2),
        ("attention.head_count_kv", 1),
    ):
        writer.add_uint32(f"llama.{key}", value)
    writer.add_float32("llama.rope.freq_base", 10000.0)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    vocabulary = ["<|end|>", *[chr(c) for c in range(33, 127)], "Ġ", "he"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(vocabulary)
    writer.add_token_types([3] + [1] * (len(vocabulary) - 1))
    writer.add_token_merges(["h e"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    rng = np.random.default_rng(0)
    shapes = {"token_embd": (len(vocabulary), 16), "output_norm": (16,)}
    for layer in range(2):
        at = f"blk.{layer}."
        shapes |= {
            f"{at}attn_q": (16, 16), f"{at}attn_k": (8, 16), f"{at}attn_v": (8, 16),
            f"{at}attn_output": (16, 16), f"{at}ffn_gate": (24, 16), f"{at}ffn_up": (24, 16),
            f"{at}ffn_down": (16, 24), f"{at}attn_norm": (16,), f"{at}ffn_norm": (16,),
        }  # fmt: skip
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", rng.standard_normal(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_packaged_model_is_converted_once(toy: PackagedModel, tmp_path: Path) -> None:
    """The first call makes the folder, the second touches nothing; it loads with its notice."""
    folder = prepare("toy", tmp_path / "data", NoProgress())
    assert folder == tmp_path / "data" / "models" / f"toy-{toy.sha256[:8]}"
    assert verify(folder, full=True) is None
    made = folder.stat().st_ctime_ns
    assert prepare("toy", tmp_path / "data", NoProgress()) == folder
    assert folder.stat().st_ctime_ns == made
    loaded = load(folder)
    assert (loaded.notice, loaded.profile.name) == ("Toys are free.", "transcript")
    assert loaded.fingerprint.startswith("sha256:")
    assert loaded.tokenizer.encode_text("he")[0] == loaded.config.vocab_size - 1


def test_what_smoothing_reads_is_kept_as_ids(
    toy: PackagedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights are quantised before a tokenizer is in memory; another text's ids do not count."""
    folder = prepare("toy", tmp_path, NoProgress())
    ids = Tokenizer.load(folder).encode_text(SAMPLE)
    steps: list[object] = []

    def loaded(path: Path) -> Tokenizer:
        steps.append("tokenizer")
        return load_tokenizer(path)

    def quantized(config: object, weights: object, sample: list[int]) -> object:
        steps.append(sample)
        return real_quantize(config, weights, sample)  # type: ignore[arg-type]

    load_tokenizer, real_quantize = Tokenizer.load, quantize
    monkeypatch.setattr(Tokenizer, "load", loaded)
    monkeypatch.setattr(checkpoint, "quantize", quantized)
    checkpoint.load(folder)
    assert steps == [ids, "tokenizer"]

    kept = json.loads((folder / SAMPLE_FILE).read_text())
    (folder / SAMPLE_FILE).write_text(json.dumps(kept).replace(kept["sha256"], "0" * 64))
    steps.clear()
    checkpoint.load(folder)
    assert steps == ["tokenizer", ids]


def test_rotary_rows_are_put_back_in_halves(toy: PackagedModel, tmp_path: Path) -> None:
    """q and k come out as before llama.cpp's interleaving, everything else as it lies."""
    folder = prepare("toy", tmp_path / "data", NoProgress())
    ours = safetensors.numpy.load_file(folder / "model.safetensors")
    theirs = {t.name: t.data for t in gguf.GGUFReader(tmp_path / "toy.gguf").tensors}
    for layer in range(2):
        for part, heads in (("q", 2), ("k", 1)):
            hf = ours[f"model.layers.{layer}.self_attn.{part}_proj.weight"]
            # What llama.cpp's converter does to a Hugging Face weight.
            mixed = hf.reshape(heads, 2, 4, 16).swapaxes(1, 2).reshape(hf.shape)
            assert np.array_equal(mixed, theirs[f"blk.{layer}.attn_{part}.weight"])
        down = ours[f"model.layers.{layer}.mlp.down_proj.weight"]
        assert np.array_equal(down, theirs[f"blk.{layer}.ffn_down.weight"])


@pytest.mark.parametrize("harm", ["cut", "lost", "manifest", "version"])
def test_a_damaged_conversion_is_made_again(toy: PackagedModel, tmp_path: Path, harm: str) -> None:
    """A file cut short or lost, an unreadable or foreign manifest: rebuilt, and sound again."""
    folder = prepare("toy", tmp_path / "data", NoProgress())
    manifest = folder / MANIFEST
    if harm == "cut":
        os.truncate(folder / "model.safetensors", 999)
    elif harm == "lost":
        (folder / "tokenizer.json").unlink()
    elif harm == "manifest":
        manifest.write_text("{")
    else:
        manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"format": 0}))
    assert verify(folder) is not None
    if harm in ("cut", "manifest"):
        with pytest.raises(WeightsDamaged):
            load(folder)
    assert prepare("toy", tmp_path / "data", NoProgress()) == folder
    assert verify(folder, full=True) is None


def test_changed_bytes_are_found_by_the_full_check(toy: PackagedModel, tmp_path: Path) -> None:
    """A flipped byte keeps the size; only the SHA-256 tells."""
    folder = prepare("toy", tmp_path / "data", NoProgress())
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert verify(folder) is None
    assert verify(folder, full=True) == "model.safetensors has the wrong SHA-256"


def test_an_interrupted_conversion_leaves_nothing_half(toy: PackagedModel, tmp_path: Path) -> None:
    """Ended in the middle there is no folder; what a killed process left is cleared away."""
    models = tmp_path / "data" / "models"

    def stop(label: str, done: int, total: int) -> None:
        if label.startswith("Converting"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare("toy", tmp_path / "data", stop)
    assert [path for path in models.iterdir() if path.is_dir()] == []
    leftover = models / f".toy-{toy.sha256[:8]}.partial-killed"
    leftover.mkdir()
    folder = prepare("toy", tmp_path / "data", NoProgress())
    assert [path for path in models.iterdir() if path.is_dir()] == [folder]


def test_weights_that_are_not_what_we_pinned_are_refused(
    toy: PackagedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wrong SHA-256, a missing file and a missing package are each one clear line."""
    monkeypatch.setitem(PACKAGED, "toy", replace(toy, sha256="0" * 64))
    with pytest.raises(WeightsDamaged, match="toy-weights have SHA-256"):
        prepare("toy", tmp_path / "data", NoProgress())
    monkeypatch.setitem(PACKAGED, "toy", replace(toy, files=(("toy_weights", "c.bin"),)))
    with pytest.raises(WeightsMissing, match=r"lacks c\.bin"):
        prepare("toy", tmp_path / "data", NoProgress())
    monkeypatch.setitem(PACKAGED, "toy", replace(toy, files=(("no_such_package", "c.bin"),)))
    with pytest.raises(WeightsMissing, match="needs the package toy-weights"):
        prepare("toy", tmp_path / "data", NoProgress())
    assert [path for path in (tmp_path / "data" / "models").iterdir() if path.is_dir()] == []


def test_a_path_is_used_in_place(tiny_folder: Path, tmp_path: Path) -> None:
    """A Hugging Face folder is not copied; what is no such folder is one clear line."""
    assert prepare(str(tiny_folder), tmp_path, NoProgress()) == tiny_folder
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(WeightsMissing, match="gemma-3-270m"):
        prepare("gemma-4", tmp_path, NoProgress())
    with pytest.raises(WeightsMissing, match=r"config\.json"):
        prepare(str(tmp_path), tmp_path, NoProgress())


def test_a_data_folder_that_cannot_be_written_is_one_clear_line(
    toy: PackagedModel, tmp_path: Path
) -> None:
    """A file where the folder should be is a typed error that names it."""
    (tmp_path / "data").write_text("")
    with pytest.raises(ModelError, match="cannot write"):
        prepare("toy", tmp_path / "data", NoProgress())


def test_another_architecture_is_refused(
    toy: PackagedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GGUF file of a family without code here is refused by name."""
    package = tmp_path / "site" / "toy_weights"
    writer = gguf.GGUFWriter(package / "c.bin", "mamba")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    sha256 = packaged._sha256(package / "c.bin")
    monkeypatch.setitem(
        PACKAGED, "toy", replace(toy, files=(("toy_weights", "c.bin"),), sha256=sha256)
    )
    with pytest.raises(UnsupportedModel, match="mamba"):
        prepare("toy", tmp_path / "data", NoProgress())


def test_the_licence_of_the_default_weights_is_there_to_show() -> None:
    """Gemma's terms are named, and both packaged files are pinned by a full SHA-256."""
    assert "Gemma Terms of Use" in PACKAGED["gemma-3-270m"].notice
    assert "Apache-2.0" in PACKAGED["smollm2-135m-instruct"].notice
    assert all(len(bytes.fromhex(model.sha256)) == 32 for model in PACKAGED.values())
