"""From one GGUF file to a Hugging Face style folder: config, float32 safetensors, tokenizer."""

from __future__ import annotations

import hashlib
import json
import math
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from backends.local.errors import UnsupportedModel, WeightsDamaged
from backends.local.gguf_tokenizer import tokenizer_config, tokenizer_json
from backends.local.model_config import ModelConfig
from backends.local.smoothing import SAMPLE, SAMPLE_FILE, sample_file
from backends.local.tokenizer import Tokenizer

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from backends.local.gguf import GGUFFile
    from backends.local.gguf_tokenizer import Json
    from backends.local.progress import Progress

__all__ = ["WrittenFile", "convert"]

_PATTERN = 6  # Gemma 3: every sixth layer is global
_LOCAL_THETA = 10_000.0  # Gemma 3: the base of its sliding layers; neither is in a GGUF file

_LAYER_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
}
_FAMILY_NAMES = {
    "gemma3": {
        "post_attention_layernorm": "post_attention_norm",
        "pre_feedforward_layernorm": "ffn_norm",
        "post_feedforward_layernorm": "post_ffw_norm",
    },
    "llama": {"post_attention_layernorm": "ffn_norm"},
}
_TOP_NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}


@dataclass(frozen=True, slots=True)
class WrittenFile:
    """A file that `convert` wrote: its name in the folder, size in bytes, SHA-256 in hex."""

    name: str
    size: int
    sha256: str


def convert(file: GGUFFile, folder: Path, label: str, progress: Progress) -> list[WrittenFile]:
    """Writes the model in `file` to the existing, empty `folder` and says what it wrote.

    Raises `UnsupportedModel` for another architecture and `WeightsDamaged` for a missing or
    misshapen tensor.
    """
    raw = _config(file)
    written = [
        _write_json(folder / "config.json", raw),
        _write_json(folder / "tokenizer.json", tokenizer_json(file)),
        _write_json(folder / "tokenizer_config.json", tokenizer_config(file)),
    ]
    sample = sample_file(Tokenizer.load(folder).encode_text(SAMPLE))
    return [
        *written,
        _write_json(folder / SAMPLE_FILE, sample),
        _write_tensors(
            file, ModelConfig.from_hf(raw), folder / "model.safetensors", label, progress
        ),
    ]


def _config(file: GGUFFile) -> dict[str, Json]:
    arch = file.text("general.architecture")
    if arch not in _FAMILY_NAMES:
        raise UnsupportedModel(f"{file.path}: architecture {arch!r} (supported: gemma3, llama)")
    hidden, heads = (
        file.count(f"{arch}.embedding_length"),
        file.count(f"{arch}.attention.head_count"),
    )
    theta = file.number(f"{arch}.rope.freq_base")
    config: dict[str, Json] = {
        "vocab_size": len(file.texts("tokenizer.ggml.tokens")),
        "hidden_size": hidden,
        "num_hidden_layers": file.count(f"{arch}.block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": file.count(f"{arch}.attention.head_count_kv"),
        "intermediate_size": file.count(f"{arch}.feed_forward_length"),
        "max_position_embeddings": file.count(f"{arch}.context_length"),
        # Stored as float32; nine digits bring the decimal fraction back.
        "rms_norm_eps": float(f"{file.number(f'{arch}.attention.layer_norm_rms_epsilon'):.6g}"),
        "attention_bias": False,
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "bos_token_id": file.count("tokenizer.ggml.bos_token_id"),
        "eos_token_id": file.count("tokenizer.ggml.eos_token_id"),
        "dtype": "float32",
    }
    if arch == "llama":
        return config | {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "head_dim": hidden // heads,
            "hidden_act": "silu",
            "mlp_bias": False,
            "rope_parameters": {"rope_type": "default", "rope_theta": theta},
        }
    key_length = file.count(f"{arch}.attention.key_length")
    return config | {
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        "head_dim": key_length,
        "query_pre_attn_scalar": key_length,
        "hidden_activation": "gelu_pytorch_tanh",
        "sliding_window": file.count(f"{arch}.attention.sliding_window"),
        "layer_types": [
            "sliding_attention" if (index + 1) % _PATTERN else "full_attention"
            for index in range(file.count(f"{arch}.block_count"))
        ],
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": theta},
            "sliding_attention": {"rope_type": "default", "rope_theta": _LOCAL_THETA},
        },
    }


def _write_json(path: Path, content: Mapping[str, object]) -> WrittenFile:
    data = json.dumps(content, ensure_ascii=False, indent=None).encode()
    with path.open("wb") as out:
        out.write(data)
        _flush_to_disk(out.fileno())
    return WrittenFile(path.name, len(data), hashlib.sha256(data).hexdigest())


def _write_tensors(
    file: GGUFFile, config: ModelConfig, path: Path, label: str, progress: Progress
) -> WrittenFile:
    """Streams the tensors to `path` one piece at a time; the file is never in memory whole."""
    shapes = config.tensor_shapes()
    header: dict[str, Json] = {"__metadata__": {"format": "pt"}}
    total = 0
    for name, shape in shapes.items():
        size = math.prod(shape) * 4
        header[name] = {
            "dtype": "F32",
            "shape": list(shape),
            "data_offsets": [total, total + size],
        }
        total += size
    head = json.dumps(header).encode()
    head += b" " * (-(len(head) + 8) % 64)  # aligned data: tensors are used as they lie in the file
    digest = hashlib.sha256()
    done = 0
    with path.open("wb") as out:
        for piece in (len(head).to_bytes(8, "little"), head):
            out.write(piece)
            digest.update(piece)
        for name, shape in shapes.items():
            written = 0
            for values in _values(file, config, name, shape):
                out.write(values.data)
                digest.update(values.data)
                written += values.nbytes
                progress(label, min(done + written, total - 1), total)
            if written != math.prod(shape) * 4:
                raise WeightsDamaged(f"{file.path}: tensor for {name} has a wrong size")
            done += written
        _flush_to_disk(out.fileno())
    progress(label, total, total)
    return WrittenFile(path.name, 8 + len(head) + total, digest.hexdigest())


def _flush_to_disk(descriptor: int) -> None:
    """Before the rename that makes the folder valid, so that a power cut cannot hollow it out."""
    os.fsync(descriptor)


def _values(
    file: GGUFFile, config: ModelConfig, name: str, shape: tuple[int, ...]
) -> Iterator[NDArray[np.float32]]:
    """The values of one Hugging Face tensor, in order."""
    source = _gguf_name(config.family, name)
    if len(shape) == 1:
        yield file.load(source) - np.float32(config.norm_offset)
    elif config.family == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
        yield _unpermute(file.load(source), config.head_dim)
    else:
        yield from file.slabs(source)


def _gguf_name(family: str, name: str) -> str:
    if name in _TOP_NAMES:
        return _TOP_NAMES[name]
    _, _, index, rest = name.split(".", 3)
    part = rest.removesuffix(".weight")
    return f"blk.{index}.{(_LAYER_NAMES | _FAMILY_NAMES[family])[part]}.weight"


def _unpermute(weight: NDArray[np.float32], head_dim: int) -> NDArray[np.float32]:
    """Rows of each head from interleaved pairs back to two halves. weight: [H D, hidden]."""
    rows, hidden = weight.shape
    pairs = weight.reshape(rows // head_dim, head_dim // 2, 2, hidden)
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(rows, hidden)
