"""What each rung of the ladder could reach at most: bytes over bandwidth, operations over rate.

Arithmetic, not measurement: no kernel beats these times, and every rung is granted a perfect one.
The measured ladder is read beside it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from backends.local.synthetic import kv_bytes, parameter_count, synthetic_config
from benchmarks.ladder import Measured, StepTime

if TYPE_CHECKING:
    from backends.local.model_config import ModelConfig
    from benchmarks.ladder import Rung, Traffic

__all__ = ["H100", "Card", "floor"]


@dataclass(frozen=True, slots=True)
class Card:
    """A GPU's roofs: bytes a second, operations a second in fp16 and in int8; bytes of memory.

    `reserve` of them are for what is neither weights nor KV.
    """

    bandwidth: float
    half_rate: float
    int8_rate: float
    memory: int
    reserve: int


H100 = Card(3.0e12, 798e12, 2 * 798e12, 78 << 30, 6 << 30)
"""As read on the card that this project was lent, by a copy and a bf16 product of 8192 cubed; the
int8 rate is taken as twice that."""


def floor(rung: Rung, size: str, traffic: Traffic, card: Card, most: int = 4096) -> Measured:
    """The shortest times that the card's roofs allow for this rung, by batch up to `most`."""
    config = synthetic_config(f"{size}-{rung.shape}")
    values, scale = (1, 2) if rung.int8 else (2, 0)
    weights = parameter_count(config) * values
    held = traffic.prompt + (traffic.reply if rung.int8 else traffic.longest_reply)
    each = kv_bytes(config, held, value_bytes=values, scale_bytes=scale)
    fits = (card.memory - card.reserve - weights) // each
    # Wide activations meet int8 weights as two digits: two products.
    rate = card.half_rate
    if rung.int8:
        rate = card.int8_rate if rung.narrow else card.int8_rate / 2
    new = traffic.uncached if rung.cached else traffic.prompt
    work = new * _linear(config) + _attention(config, traffic.prompt - new, traffic.prompt)
    middle = traffic.prompt + traffic.reply // 2
    read = _read(config, middle, values, scale)
    each_work = _linear(config) + 2 * config.vocab_size * config.hidden_size
    each_work += _attention(config, middle - 1, middle)
    largest = max(1, min(fits, most))
    batches = sorted({*(1 << n for n in range(3, 13) if 1 << n < largest), largest})
    return Measured(
        kv_bytes=each,
        fits=fits,
        prefill_rate=new * rate / work,
        prefill_seconds=work / rate,
        steps=tuple(
            StepTime(
                batch, max((weights + batch * read) / card.bandwidth, batch * each_work / rate)
            )
            for batch in batches
        ),
    )


def _linear(config: ModelConfig) -> int:
    """Operations of a token in all linear layers but the head."""
    shapes = config.tensor_shapes()
    del shapes["model.embed_tokens.weight"]
    return 2 * sum(math.prod(shape) for shape in shapes.values() if len(shape) == 2)


def _attention(config: ModelConfig, before: int, after: int) -> int:
    """Operations of attention for the tokens at positions [before, after)."""
    pairs = 0
    for spec in config.layers:
        window = spec.window or after
        ramp = range(min(before, window) + 1, min(after, window) + 1)
        pairs += sum(ramp) + (after - before - len(ramp)) * window
    return 4 * config.q_heads * config.head_dim * pairs


def _read(config: ModelConfig, tokens: int, values: int, scale: int) -> int:
    """KV bytes that a decoded token reads: a layer that owns none reads its source's."""
    seen = sum(min(tokens, spec.window or tokens) for spec in config.layers)
    return 2 * config.kv_heads * (config.head_dim * values + scale) * seen
