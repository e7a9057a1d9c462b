"""For tests of the engine: a tiny model folder, sequences with a pool of their own. It ships.

A Llama of a few thousand random weights over the 256 bytes. Its head knows only printable ASCII,
so a greedy reply is plain text that neither ends early nor breaks its line.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import tokenizers
import torch
from safetensors.torch import save_file
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel

from backends.local.model_config import ModelConfig
from backends.local.paged import SequenceKV
from kvstore.device import DeviceTier

if TYPE_CHECKING:
    from pathlib import Path

    from backends.local.model_config import KVDtype

__all__ = ["arena", "sequence", "write_tiny_model"]

END = "<|endoftext|>"


def arena(config: ModelConfig, tokens: int = 4096, *, kv_dtype: KVDtype = "float32") -> DeviceTier:
    """A pool of KV pages with room for `tokens` tokens in every group."""
    layout = config.kv_layout(kv_dtype)
    pages = -(-tokens // layout.block_tokens) + 2
    return DeviceTier(layout, {group.id: pages for group in layout.groups})


def sequence(
    config: ModelConfig, tokens: int = 4096, *, kv_dtype: KVDtype = "float32"
) -> SequenceKV:
    """An empty sequence in a pool of its own."""
    return SequenceKV(arena(config, tokens, kv_dtype=kv_dtype))


def write_tiny_model(folder: Path, *, seed: int = 0, context: int = 4096) -> Path:
    """Writes config, weights and tokenizer into `folder` (made if need be) and returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    backend = _byte_tokenizer()
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": END}))
    raw: dict[str, object] = {
        "model_type": "llama",
        "vocab_size": backend.get_vocab_size(),
        "hidden_size": 64,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "intermediate_size": 128,
        "num_hidden_layers": 3,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "max_position_embeddings": context,
        "tie_word_embeddings": False,
        "eos_token_id": backend.token_to_id(END),
    }
    (folder / "config.json").write_text(json.dumps(raw))
    generator = torch.Generator().manual_seed(seed)
    weights: dict[str, torch.Tensor] = {}
    for name, shape in ModelConfig.from_hf(raw).tensor_shapes().items():
        if len(shape) == 1:
            weights[name] = torch.ones(shape)
        else:
            weights[name] = torch.randn(shape, generator=generator) * shape[1] ** -0.5
    head = weights["lm_head.weight"]  # [V, hidden]
    speakable = torch.tensor([backend.token_to_id(chr(c)) for c in range(33, 127)])
    silent = torch.ones(len(head), dtype=torch.bool).index_fill(0, speakable, False)
    head[silent] = 0.0
    head *= 4.0  # far apart, so that rounding never changes a greedy reply
    save_file(weights, folder / "model.safetensors")
    return folder


def _byte_tokenizer() -> tokenizers.Tokenizer:
    vocabulary = {char: i for i, char in enumerate(sorted(ByteLevel.alphabet()))}
    backend = tokenizers.Tokenizer(BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = ByteLevel(add_prefix_space=False)
    backend.decoder = ByteLevelDecoder()
    backend.add_special_tokens([tokenizers.AddedToken(END, special=True)])
    return backend
