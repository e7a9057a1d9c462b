"""Loading a model folder: Hugging Face names and shapes checked, weights mapped, not copied."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from safetensors import SafetensorError, safe_open

from backends.local.errors import UnsupportedModel, WeightsDamaged, WeightsMissing
from backends.local.model import Decoder
from backends.local.model_config import ModelConfig
from backends.local.packaged import MANIFEST, verify
from backends.local.profile import PROFILES, Profile, detect_profile
from backends.local.quantize import quantize
from backends.local.smoothing import SAMPLE, kept_sample
from backends.local.tokenizer import Tokenizer

if TYPE_CHECKING:
    from concurrent.futures import Future
    from pathlib import Path

    from torch import Tensor

    from backends.local.kernels.cpu import CpuKernels
    from backends.local.model import DeviceChoice
    from backends.local.template import Template

__all__ = ["LoadedModel", "load"]

_FLOATS = (torch.float32, torch.float16, torch.bfloat16)
_INDEX = "model.safetensors.index.json"
_SAMPLES, _SAMPLE_BYTES = 64, 1 << 16


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model ready to run.

    `fingerprint` names the weights for the KV space: the SHA-256 of the safetensors file of a
    folder that we converted; for any other folder a SHA-256 over each file's name, size, header
    and 64 samples of 64 KiB. `notice` is the licence notice to show, `""` when we know none.
    """

    config: ModelConfig
    decoder: Decoder
    tokenizer: Tokenizer
    template: Template
    profile: Profile
    fingerprint: str
    notice: str


def load(
    path: Path,
    *,
    numerics: Literal["int8", "float32"] = "int8",
    kernels: CpuKernels | Future[CpuKernels | None] | None = None,
    device: DeviceChoice = "cpu",
    context: int = 8192,
) -> LoadedModel:
    """Loads a folder that `backends.local.packaged.prepare` gave.

    `kernels` make int8 fast and change no bit of it (`backends.local.kernels.cpu.build`), and
    neither does a CUDA `device`, made ready for `context` tokens: see `Decoder.of`.
    Raises `WeightsMissing`, `WeightsDamaged` or `UnsupportedModel`, each with the file's name.
    """
    config = ModelConfig.from_hf(_read_object(path / "config.json"))
    manifest: dict[str, object] = {}
    if (path / MANIFEST).is_file():
        wrong = verify(path)
        if wrong is not None:
            raise WeightsDamaged(f"{path}: {wrong}")
        manifest = _read_object(path / MANIFEST)
    files = _weight_files(path)
    tokenizer: Tokenizer | None = None
    if numerics == "int8":
        # Less memory at once: a tokenizer beside the mapped weights only where it must be, and
        # these are gone before the quantised ones are packed.
        sample = kept_sample(path) if manifest else None
        if sample is None:
            tokenizer = _tokenizer(path, config)
            sample = tokenizer.encode_text(SAMPLE)
        quantized = quantize(config, _read_tensors(path, files, config), sample)
        decoder = Decoder.of(quantized, kernels, device=device, context=context)
    else:
        decoder = Decoder.float32(config, _read_tensors(path, files, config))
    tokenizer = tokenizer or _tokenizer(path, config)
    profile = _profile(path, manifest, tokenizer)
    return LoadedModel(
        config=config,
        decoder=decoder,
        tokenizer=tokenizer,
        template=profile.template(tokenizer),
        profile=profile,
        fingerprint=_pinned(manifest) or _sampled(path, files),
        notice=str(manifest.get("notice", "")),
    )


def _tokenizer(path: Path, config: ModelConfig) -> Tokenizer:
    tokenizer = Tokenizer.load(path)
    if tokenizer.vocab_size > config.vocab_size:
        raise WeightsDamaged(
            f"{path}: tokenizer of {tokenizer.vocab_size} ids for a model of {config.vocab_size}"
        )
    return tokenizer


def _profile(path: Path, manifest: dict[str, object], tokenizer: Tokenizer) -> Profile:
    name = manifest.get("profile")
    if name is None:
        return detect_profile(path, tokenizer)
    profile = PROFILES.get(str(name))
    if profile is None:
        raise WeightsDamaged(f"{path / MANIFEST}: unknown profile {name!r}")
    return profile


def _read_object(path: Path) -> dict[str, object]:
    try:
        content = json.loads(path.read_text())
    except OSError as error:
        raise WeightsMissing(f"{path}: {error.strerror}") from None
    except ValueError:
        raise WeightsDamaged(f"{path}: not JSON") from None
    if not isinstance(content, dict):
        raise WeightsDamaged(f"{path}: not a JSON object")
    return content


def _weight_files(path: Path) -> list[str]:
    """The names of the safetensors files: one, or the shards that an index lists."""
    if (path / "model.safetensors").is_file():
        return ["model.safetensors"]
    if not (path / _INDEX).is_file():
        raise WeightsMissing(f"{path}: no model.safetensors")
    shards = _read_object(path / _INDEX).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise WeightsDamaged(f"{path / _INDEX}: no weight_map")
    names = sorted({str(name) for name in shards.values()})
    for name in names:
        if "/" in name or "\\" in name:
            raise WeightsDamaged(f"{path / _INDEX}: {name!r} is outside the folder")
        if not (path / name).is_file():
            raise WeightsMissing(f"{path / name}: no such file")
    return names


def _read_tensors(path: Path, files: list[str], config: ModelConfig) -> dict[str, Tensor]:
    """The model's tensors as float32; float32 ones are views of the mapped file."""
    shapes = config.tensor_shapes()
    tensors: dict[str, Tensor] = {}
    for file in files:
        try:
            with safe_open(path / file, framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118 (not a mapping)
                    if name not in shapes:
                        _check_extra(path / file, name, config)
                        continue
                    tensors[name] = _checked(path / file, name, opened.get_tensor(name), shapes)
        except SafetensorError as error:
            raise WeightsDamaged(f"{path / file}: {error}") from None
    missing = [name for name in shapes if name not in tensors]
    if missing:
        raise WeightsDamaged(f"{path}: {len(missing)} tensors are missing, first {missing[0]}")
    return tensors


def _checked(path: Path, name: str, tensor: Tensor, shapes: dict[str, tuple[int, ...]]) -> Tensor:
    if tuple(tensor.shape) != shapes[name]:
        raise WeightsDamaged(
            f"{path}: {name} has shape {tuple(tensor.shape)}, not {shapes[name]} as in config.json"
        )
    if tensor.dtype not in _FLOATS:
        raise UnsupportedModel(f"{path}: {name} has dtype {tensor.dtype}")
    return tensor.float()


def _check_extra(path: Path, name: str, config: ModelConfig) -> None:
    """A tensor we have no place for means a model we would run wrong, but for these two."""
    copy_of_embedding = name == "lm_head.weight" and config.tie_embeddings
    if not copy_of_embedding and not name.endswith("rotary_emb.inv_freq"):
        raise UnsupportedModel(f"{path}: unexpected tensor {name}")


def _pinned(manifest: dict[str, object]) -> str | None:
    """The SHA-256 that the conversion wrote down."""
    entries = manifest.get("files")
    for entry in entries if isinstance(entries, list) else []:
        if isinstance(entry, dict) and entry.get("name") == "model.safetensors":
            return f"sha256:{entry['sha256']}"
    return None


def _sampled(path: Path, files: list[str]) -> str:
    digest = hashlib.sha256()
    for name in files:
        with (path / name).open("rb") as file:
            size = (path / name).stat().st_size
            head = int.from_bytes(file.read(8), "little")
            digest.update(f"{name}:{size}:{head}:".encode() + file.read(head))
            for sample in range(_SAMPLES):
                file.seek(8 + head + (size - 8 - head) * sample // _SAMPLES)
                digest.update(file.read(_SAMPLE_BYTES))
    return f"sampled:{digest.hexdigest()}"
