"""Powers of two that make activations of 8 bits enough: SmoothQuant (Xiao et al. 2022).

A few channels of what a norm gives are far larger than the rest, and one scale a row then leaves
the rest few codes. Such a channel is divided by a factor in the norm's weights and multiplied by it
in the product's, which changes no result and shares the width out between both. Factors are powers
of two, so that moving them rounds nothing.

They are found by running a little text through the float32 model, layer by layer.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from backends.local.layers import RopeTables, attend, fuse, rms_norm, rotate

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

    from backends.local.layers import Layer
    from backends.local.model_config import ModelConfig

__all__ = ["SAMPLE", "SAMPLE_FILE", "Smoothing", "find_smoothing", "kept_sample", "sample_file"]

SAMPLE = """\
Maren leaned over the rail of the lighthouse and watched the last of the daylight slide off the sea.

"You're late," she said, without turning round. "The lamp won't light itself, you know."

"The road was under water from the mill to the chapel," said Tobias. He put down his bag, shook the
rain from his hat, and counted what was left of the oil: 3 tins, perhaps 14 litres. "Did anyone ask
for me while I was gone?"

"Only the cat. And a letter came from Lisbon, with a blue stamp and no name on it."

User: Hi! Who are you, and what is this place?
Guide: *smiles and sets a lantern on the table* I'm the keeper here. People who are lost find my
door, sooner or later; some of them even find their way home again. What are you looking for?
User: A map, I think. Or somebody who has been there before.
Guide: Then sit down, it's a long story! First of all: don't trust the bridge after dark. Second,
never pay more than two silver coins for bread. (The baker will tell you it costs five. He's lying.)
User: lol ok, and third?
Guide: Third... I've forgotten the third. It will come back to me when it matters.

In 1897 the observatory published a list of 412 stars whose brightness changes from night to night.
Most of them have since been explained; a handful have not. If x is the distance and t the time,
then x / t is what we call speed, and nothing in this table moves faster than light.
"""
"""Talk, narration and a little of everything else; what is measured is measured on other texts."""

SAMPLE_FILE = "sample.json"
"""Its token ids, in the folder of a model that we converted: a tokenizer need not be there, in
memory, while weights are quantised."""

_SILENT = 1e-5
"""Channels below this share of the loudest count as that loud."""


def sample_file(ids: Sequence[int]) -> dict[str, str | list[int]]:
    """What `SAMPLE_FILE` holds, for the token ids of `SAMPLE`."""
    return {"sha256": _sample_digest(), "ids": list(ids)}


def kept_sample(folder: Path) -> list[int] | None:
    """The ids of `SAMPLE` that `folder` keeps; None where it keeps none, or another text's."""
    try:
        kept = json.loads((folder / SAMPLE_FILE).read_text())
        return [int(id) for id in kept["ids"]] if kept["sha256"] == _sample_digest() else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _sample_digest() -> str:
    return hashlib.sha256(SAMPLE.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Smoothing:
    """Factors [hidden] of every product behind a norm: by layer, and of the head.

    `head_inputs`: float32 [T, hidden], what the head is given on the sample with its factors moved.
    """

    qkv: tuple[Tensor, ...]
    gate_up: tuple[Tensor, ...]
    head: Tensor
    head_inputs: Tensor

    def digest(self) -> str:
        """A short name: two models of equal weights compute the same where it is equal."""
        digest = hashlib.sha256()
        for factor in (*self.qkv, *self.gate_up, self.head):
            digest.update(torch.log2(factor).to(torch.int8).numpy().tobytes())
        return digest.hexdigest()[:8]


@torch.inference_mode()
def find_smoothing(
    config: ModelConfig, weights: Mapping[str, Tensor], sample: Sequence[int]
) -> Smoothing:
    """The factors that suit `weights`, by how loud each channel gets on the tokens of `sample`.

    `weights`: float32, as `config.tensor_shapes()` names them. Takes one forward pass.
    """
    count = len(sample)
    ropes = RopeTables(config)
    tables = [(cos[:count, None], sin[:count, None]) for cos, sin in ropes.upto(count)]
    x = F.embedding(torch.tensor(sample), weights["model.embed_tokens.weight"]) * config.embed_scale
    kept: dict[int, tuple[Tensor, Tensor]] = {}
    qkv, gate_up = [], []
    for index, spec in enumerate(config.layers):
        layer = fuse(config, weights, index, lambda parts: torch.cat(list(parts)))
        h = rms_norm(x, layer.before_attention, config.rms_eps)  # [T, hidden]
        qkv.append(_factors(h, layer.qkv))
        q, *new = _heads(config, layer, h, tables[ropes.of(spec)])
        if spec.kv_source is None:
            kept[index] = (new[0], new[1])
        k, v = kept[index if spec.kv_source is None else spec.kv_source]
        out = attend(q, k, v, 0, spec.window, config.attention_scale).view(count, -1)
        x = x + _normed(config, out @ layer.out.T, layer.after_attention)
        h = rms_norm(x, layer.before_mlp, config.rms_eps)
        gate_up.append(_factors(h, layer.gate_up))
        gate, up = (h @ layer.gate_up.T).chunk(2, dim=-1)
        gate = F.silu(gate) if config.activation == "silu" else F.gelu(gate, approximate="tanh")
        x = x + _normed(config, (gate * up) @ layer.down.T, layer.after_mlp)
    norm = weights["model.norm.weight"] + config.norm_offset
    head = weights["model.embed_tokens.weight" if config.tie_embeddings else "lm_head.weight"]
    h = rms_norm(x, norm, config.rms_eps)
    factors = _factors(h, head)
    return Smoothing(tuple(qkv), tuple(gate_up), factors, h / factors)


def _heads(
    config: ModelConfig, layer: Layer[Tensor], h: Tensor, rope: tuple[Tensor, Tensor]
) -> list[Tensor]:
    """Queries, and keys and values where the layer owns them: [T, heads, D] each."""
    heads = (h @ layer.qkv.T).view(len(h), -1, config.head_dim)
    owns = layer.spec.kv_source is None
    rotary = config.q_heads + (config.kv_heads if owns else 0)
    qk = rotate(_normed(config, heads[:, :rotary], layer.qk_norm), *rope)
    return [qk[:, : config.q_heads], qk[:, config.q_heads :], heads[:, rotary:]]


def _normed(config: ModelConfig, x: Tensor, weight: Tensor | None) -> Tensor:
    return x if weight is None else rms_norm(x, weight, config.rms_eps)


def _factors(x: Tensor, weight: Tensor) -> Tensor:
    """The square root of how much louder a channel is than its weights, to a power of two."""
    loud, wide = _loudness(x), _loudness(weight)
    exponents = (torch.log2(loud) - torch.log2(wide)) / 2
    return torch.exp2(torch.round(exponents - exponents.median()).clamp(-20, 20)).float()


def _loudness(x: Tensor) -> Tensor:
    """The largest magnitude of each channel [K] of x [T, K], float64."""
    largest = torch.maximum(x.amax(0), -x.amin(0)).double()
    return largest.clamp_min(_SILENT * float(largest.max()) or 1.0)
