"""Conversations through the engine on a device: what the CPU says, whatever happens around them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from backends.api import Sampling
from backends.local.model import Decoder, random_weights
from backends.local.model_config import ModelConfig
from backends.local.quantize import quantize
from backends.local.scheduler import Limits
from backends.testing import turn as small_turn
from kvstore.device import DeviceTier
from tests.backends.local.rig import Rig, finished, greedy, next_turn, text_of

if TYPE_CHECKING:
    from backends.local.checkpoint import LoadedModel

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module", params=["windows", "global"])
def pair(
    request: pytest.FixtureRequest, model: LoadedModel, device: str
) -> tuple[LoadedModel, LoadedModel]:
    """One model twice: on the CPU in PyTorch, and on the device."""
    from backends.local.gpu.steps import GpuSteps

    windows: tuple[int | None, ...] = (48, None) if request.param == "windows" else (None,)
    config = ModelConfig.synthetic(
        vocab_size=model.config.vocab_size, windows=windows, hidden_size=32, q_heads=2
    )
    weights = random_weights(config, 3)
    there = GpuSteps(quantize(config, weights), device, context=1024)
    return (
        replace(model, config=config, decoder=Decoder.int8(config, weights, None)),
        replace(model, config=config, decoder=Decoder(config, there)),
    )


def rig(model: LoadedModel, limits: Limits | None = None) -> Rig:
    layout = model.config.kv_layout("int8")
    slots = {group.id: 200 for group in layout.groups}
    tier = DeviceTier(layout, slots, device=model.decoder.device)
    return Rig(model, limits=limits, device=tier)


def test_the_device_says_what_the_cpu_says(pair: tuple[LoadedModel, LoadedModel]) -> None:
    """Greedy: alone, in company, in small chunks and warm, the ids are the CPU's."""
    cpu, gpu = pair
    turns = [greedy(text, id=text, max_tokens=6) for text in ("Who?", "Where are we?", "Go on.")]
    expected = [finished(rig(cpu).speak(turn)[0]).sampled for turn in turns]
    together = rig(gpu)
    heard = together.speak(*turns)
    assert [finished(one).sampled for one in heard] == expected
    chunked = rig(gpu, Limits(max_running=4, step_tokens=16)).speak(*turns)
    assert [finished(one).sampled for one in chunked] == expected

    again = next_turn(turns[0], heard[0], "And then?")
    cold = finished(rig(cpu).speak(again)[0])
    warm = finished(together.speak(again)[0])
    assert cold.usage.cached_tokens == 0
    assert warm.usage.cached_tokens > 0
    assert warm.sampled == cold.sampled


def test_a_restored_conversation_goes_on_as_if_it_had_stayed(
    pair: tuple[LoadedModel, LoadedModel],
) -> None:
    """KV that the CPU's engine kept is read by the device's, and the reply is the same."""
    cpu, gpu = pair
    first = rig(cpu)
    turn = greedy(max_tokens=6)
    heard = first.speak(turn)[0]
    again = next_turn(turn, heard, "And then?")
    expected = finished(rig(cpu).speak(again)[0])
    moved = rig(gpu)
    moved.kept.blocks.update(first.kept.blocks)
    restored = finished(moved.speak(again)[0])
    assert restored.usage.cached_tokens > 64
    assert restored.sampled == expected.sampled


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=0.8, top_k=20, top_p=0.9, seed=7, max_tokens=6),
        Sampling(temperature=1.3, min_p=0.05, seed=7, max_tokens=6),
        Sampling(temperature=0.7, repetition_penalty=1.2, seed=7, max_tokens=6),
    ],
    ids=["top-k", "min-p", "penalty"],
)
def test_draws_are_the_cpu_s(pair: tuple[LoadedModel, LoadedModel], sampling: Sampling) -> None:
    """The same seed draws the same tokens, however much of the logits is fetched."""
    turn = small_turn(sampling=sampling)
    one, other = (rig(model).speak(turn)[0] for model in pair)
    assert text_of(one) == text_of(other)
    assert finished(one).sampled == finished(other).sampled
