"""Loading Hugging Face folders: every dtype and layout, and every way to be wrong."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import load_file, save_file

from backends.local.checkpoint import load
from backends.local.errors import ModelError, UnsupportedModel, WeightsDamaged, WeightsMissing
from backends.local.model import Chunk
from backends.local.profile import detect_profile
from backends.local.testing import sequence
from backends.local.tokenizer import Tokenizer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

Weights = dict[str, torch.Tensor]


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model that a test may harm."""
    return shutil.copytree(tiny_folder, tmp_path / "model")


def logits(path: Path) -> torch.Tensor:
    model = load(path)
    return model.decoder.forward(
        [Chunk(sequence(model.config, kv_dtype=model.decoder.kv_dtype), torch.tensor([5, 6, 7]))]
    )


def rewrite(folder: Path, change: Callable[[Weights], Weights | None]) -> None:
    """Changes the weights in place."""
    path = folder / "model.safetensors"
    weights = {name: tensor.clone() for name, tensor in load_file(path).items()}
    save_file(change(weights) or weights, path)


def test_shards_load_as_one_file_does(folder: Path) -> None:
    """An index and two shards give the logits of the single file."""
    expected = logits(folder)
    weights = load_file(folder / "model.safetensors")
    names = sorted(weights)
    shards = {name: f"part-{index % 2}.safetensors" for index, name in enumerate(names)}
    for shard in set(shards.values()):
        save_file({n: weights[n] for n in names if shards[n] == shard}, folder / shard)
    (folder / "model.safetensors").unlink()
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": shards}))
    assert torch.equal(logits(folder), expected)

    (folder / "part-1.safetensors").unlink()
    with pytest.raises(WeightsMissing, match="part-1"):
        load(folder)
    index.write_text(json.dumps({"weight_map": dict.fromkeys(names, "../x.safetensors")}))
    with pytest.raises(WeightsDamaged, match="outside"):
        load(folder)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_widened(folder: Path, dtype: torch.dtype) -> None:
    """float16 and bfloat16 weights compute as float32, near the original."""
    expected = logits(folder)
    rewrite(folder, lambda weights: {name: t.to(dtype) for name, t in weights.items()})
    got = logits(folder)
    assert got.dtype == torch.float32
    assert not torch.equal(got, expected)
    torch.testing.assert_close(got, expected, rtol=0.1, atol=0.2)


def _transpose(weights: Weights) -> None:
    name = "model.layers.0.mlp.down_proj.weight"
    weights[name] = weights[name].T.contiguous()


def _drop(weights: Weights) -> None:
    del weights["model.norm.weight"]


def _add(weights: Weights) -> None:
    weights["model.layers.0.self_attn.q_proj.bias"] = torch.zeros(64)


def _integers(weights: Weights) -> None:
    weights["model.norm.weight"] = torch.ones(64, dtype=torch.int32)


@pytest.mark.parametrize(
    ("harm", "error", "word"),
    [
        (_transpose, WeightsDamaged, "down_proj"),
        (_drop, WeightsDamaged, "model.norm"),
        (_add, UnsupportedModel, "bias"),
        (_integers, UnsupportedModel, "int32"),
    ],
)
def test_tensors_that_do_not_fit_the_config_are_named(
    folder: Path, harm: Callable[[Weights], None], error: type[ModelError], word: str
) -> None:
    """A wrong shape, a missing, an extra or an integer tensor is one clear line."""
    rewrite(folder, harm)
    with pytest.raises(error, match=word) as caught:
        load(folder)
    assert "\n" not in caught.value.message


def test_files_that_are_missing_or_broken_are_named(folder: Path) -> None:
    """No weights, cut weights, no config, a config that is no JSON."""
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    with pytest.raises(WeightsDamaged, match=r"model\.safetensors"):
        load(folder)
    path.unlink()
    with pytest.raises(WeightsMissing, match=r"model\.safetensors"):
        load(folder)
    (folder / "config.json").write_text("[]")
    with pytest.raises(WeightsDamaged, match=r"config\.json"):
        load(folder)
    (folder / "config.json").unlink()
    with pytest.raises(WeightsMissing, match=r"config\.json"):
        load(folder)


def test_the_fingerprint_follows_the_weights(folder: Path) -> None:
    """The same files give the same fingerprint, a changed weight another."""
    first = load(folder).fingerprint
    assert first.startswith("sampled:")
    assert load(folder).fingerprint == first

    def nudge(weights: Weights) -> None:
        weights["model.norm.weight"][3] += 0.5

    rewrite(folder, nudge)
    assert load(folder).fingerprint != first


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (None, "transcript"),
        ("{{ '<|im_start|>' }}", "transcript"),  # the vocabulary lacks the marker
        ("[INST] {{ messages }}", "transcript"),
    ],
)
def test_a_folder_without_a_known_template_gets_the_transcript(
    folder: Path, template: str | None, expected: str
) -> None:
    """The profile comes from the chat template, if the vocabulary can carry it."""
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"chat_template": template}))
    assert load(folder).profile.name == expected


def test_a_folder_with_chatml_gets_chatml(packaged_smollm2: Path, tmp_path: Path) -> None:
    """Without our manifest the packaged SmolLM2 folder is recognised by its template."""
    tokenizer = Tokenizer.load(packaged_smollm2)
    assert detect_profile(packaged_smollm2, tokenizer).name == "chatml"
    template = tmp_path / "chat_template.jinja"
    template.write_text("{{ '<|im_start|>' }}")
    assert detect_profile(tmp_path, tokenizer).name == "chatml"
