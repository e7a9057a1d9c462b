"""The decoder on tiny random models: chunks, batches and restored prefixes change nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from backends.local.model import Chunk, Decoder, random_weights
from backends.local.model_config import ModelConfig
from backends.local.paged import SequenceKV
from backends.local.testing import arena, sequence
from kvstore.api import BlockKey, PrefixKey
from kvstore.device import DeviceTier

if TYPE_CHECKING:
    from collections.abc import Iterator

    from backends.local.kernels.cpu import CpuKernels

CONFIGS = {
    "mqa-hybrid": ModelConfig.synthetic(),
    "gqa": ModelConfig.synthetic(kv_heads=2, windows=(None, None), qk_norm=False),
    "mha": ModelConfig.synthetic(kv_heads=4, windows=(16, None)),
    "shared-kv": ModelConfig.synthetic(windows=(32, None, 32, None), kv_sources={2: 0, 3: 1}),
}
WEIGHTS = {name: random_weights(config, seed=7) for name, config in CONFIGS.items()}
TOKENS = torch.randint(0, 512, (700,), generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny matrices: a second thread would only be waited for."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=CONFIGS)
def name(request: pytest.FixtureRequest) -> str:
    """Every kind of model."""
    assert isinstance(request.param, str)
    return request.param


@pytest.fixture(params=["pytorch", "kernels"])
def int8(name: str, request: pytest.FixtureRequest, kernels: CpuKernels) -> Decoder:
    """The int8 decoder both ways."""
    used = kernels if request.param == "kernels" else None
    return Decoder.int8(CONFIGS[name], WEIGHTS[name], used)


@pytest.fixture
def float32(name: str) -> Decoder:
    """The float32 decoder."""
    return Decoder.float32(CONFIGS[name], WEIGHTS[name])


def empty(decoder: Decoder) -> SequenceKV:
    """A new sequence as the decoder keeps them."""
    return sequence(decoder.config, kv_dtype=decoder.kv_dtype)


def run(decoder: Decoder, kv: SequenceKV, start: int, end: int, step: int) -> torch.Tensor:
    """Feeds TOKENS [start, end) in chunks of `step`; the last logits [vocab]."""
    for at in range(start, end, step):
        logits = decoder.forward([Chunk(kv, TOKENS[at : min(at + step, end)])])
    return logits[0]


def naive(decoder: Decoder, length: int) -> torch.Tensor:
    """The last logits by one chunk in a cache that has seen nothing."""
    return decoder.forward([Chunk(empty(decoder), TOKENS[:length])])[0]


def restored(kv: SequenceKV, length: int) -> SequenceKV:
    """The prefix of `length` tokens of `kv` in another pool, by its payloads alone."""
    layout = kv.arena.layout
    pool = DeviceTier(layout, {group.id: 80 for group in layout.groups})
    slots = {}
    for group in layout.groups:
        for start in range(layout.first_needed(group, length), length, layout.block_tokens):
            end = min(start + layout.block_tokens, length)
            taken = pool.take(group.id, 1)
            assert taken is not None
            payload = bytes(kv.payloads([(group.id, start, end)]).payloads()[0])
            pool.write(group.id, taken[0], end - start, memoryview(payload))
            slots[BlockKey(PrefixKey(b"", b"", end, rolling=0), start, group.id)] = taken[0]
    warm = SequenceKV(pool)
    warm.adopt(list(slots), slots, length)
    return warm


@pytest.mark.parametrize("step", [1, 37, 64, 300])
def test_float32_chunks_give_what_the_whole_prompt_gives(float32: Decoder, step: int) -> None:
    """Whatever the chunk size, the logits are close to those of one pass."""
    parts = run(float32, empty(float32), 0, 300, step)
    torch.testing.assert_close(parts, naive(float32, 300), rtol=1e-4, atol=1e-4)


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(1, 150), min_size=1, max_size=4))
def test_int8_chunks_give_the_bits_of_the_whole_prompt(int8: Decoder, steps: list[int]) -> None:
    """However the prompt is cut, the last logits are equal, far beyond the window."""
    kv = empty(int8)
    for step in steps:
        logits = int8.forward([Chunk(kv, TOKENS[kv.length : kv.length + step])])
    assert torch.equal(logits[0], naive(int8, kv.length))


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 200), st.integers(1, 70)), min_size=2, max_size=5))
def test_int8_rows_are_the_same_in_any_batch(int8: Decoder, parts: list[tuple[int, int]]) -> None:
    """Prefill chunks and decodes of several sequences in one pass change no bit of each other."""
    pool = arena(int8.config, 8192, kv_dtype="int8")
    kvs = [SequenceKV(pool) for _ in parts]
    for kv, (length, _) in zip(kvs, parts, strict=True):
        if length:
            run(int8, kv, 0, length, 64)
    logits = int8.forward(
        [
            Chunk(kv, TOKENS[length : length + step])
            for kv, (length, step) in zip(kvs, parts, strict=True)
        ]
    )
    assert logits.shape == (len(parts), int8.config.vocab_size)
    for row, kv, (length, step) in zip(logits, kvs, parts, strict=True):
        assert kv.length == length + step
        assert torch.equal(row, naive(int8, length + step))


def test_a_float32_batch_gives_what_each_chunk_gives_alone(float32: Decoder) -> None:
    """Prefill chunks and decodes of several sequences in one pass do not touch each other."""
    parts = [(0, 70), (90, 1), (33, 5), (200, 1)]
    pool = arena(float32.config)
    kvs = [SequenceKV(pool) for _ in parts]
    for kv, (length, _) in zip(kvs, parts, strict=True):
        if length:
            run(float32, kv, 0, length, 64)
    chunks = [Chunk(kv, TOKENS[at : at + n]) for kv, (at, n) in zip(kvs, parts, strict=True)]
    for row, (length, step) in zip(float32.forward(chunks), parts, strict=True):
        torch.testing.assert_close(row, naive(float32, length + step), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("length", [1, 64, 100, 190])
def test_a_restored_prefix_goes_on_bit_for_bit(int8: Decoder, length: int) -> None:
    """Payloads copied to another pool give the same logits, and those of no cache at all."""
    cold = empty(int8)
    run(int8, cold, 0, length, 64)
    warm = restored(cold, length)
    expected = run(int8, cold, length, length + 30, 1)
    assert torch.equal(run(int8, warm, length, length + 30, 7), expected)
    assert torch.equal(naive(int8, length + 30), expected)


def test_a_restored_float32_prefix_goes_on_bit_for_bit(float32: Decoder) -> None:
    """The same bytes and the same steps give the same logits."""
    cold = empty(float32)
    run(float32, cold, 0, 100, 64)
    warm = restored(cold, 100)
    assert torch.equal(run(float32, warm, 100, 120, 1), run(float32, cold, 100, 120, 1))


def test_int8_stays_near_float32(name: str) -> None:
    """On random weights the logits of the two differ by little."""
    decoder = Decoder.int8(CONFIGS[name], WEIGHTS[name], None)
    exact = naive(Decoder.float32(CONFIGS[name], WEIGHTS[name]), 200)
    assert float((naive(decoder, 200) - exact).norm() / exact.norm()) < 0.05


def test_int8_sliding_layers_see_their_window_and_no_more(kernels: CpuKernels) -> None:
    """With one layer of window w, the last w tokens decide, and nothing before changes a bit."""
    config = ModelConfig.synthetic(windows=(70,))
    decoder = Decoder.int8(config, random_weights(config, 3), kernels)

    def changed(at: int) -> torch.Tensor:
        tokens = TOKENS[:300].clone()
        tokens[at] = (tokens[at] + 1) % config.vocab_size
        return decoder.forward([Chunk(empty(decoder), tokens)])[0]

    base = naive(decoder, 300)
    assert not torch.equal(changed(300 - 70), base)
    assert torch.equal(changed(300 - 71), base)


def test_a_sliding_layer_sees_its_window_and_no_more() -> None:
    """The same in float32."""
    config = ModelConfig.synthetic(windows=(8,))
    decoder = Decoder.random(config, seed=3)

    def changed(at: int) -> torch.Tensor:
        tokens = TOKENS[:300].clone()
        tokens[at] = (tokens[at] + 1) % config.vocab_size
        return decoder.forward([Chunk(empty(decoder), tokens)])[0]

    base = naive(decoder, 300)
    assert not torch.allclose(changed(300 - 8), base)
    torch.testing.assert_close(changed(300 - 9), base)


def test_a_sliding_group_does_not_grow_with_the_context() -> None:
    """After thousands of tokens a local layer holds its window and some slack."""
    config = ModelConfig.synthetic(windows=(32,))
    decoder = Decoder.random(config, seed=0)
    kv = sequence(config, tokens=512)
    for _ in range(20):
        decoder.forward([Chunk(kv, TOKENS[:200])])
    assert kv.length == 4000
    assert kv.first_held(0) > 3000


def test_an_empty_chunk_is_refused() -> None:
    """A chunk has at least one token."""
    decoder = Decoder.random(CONFIGS["gqa"], seed=7)
    with pytest.raises(ValueError, match="at least one"):
        decoder.forward([Chunk(empty(decoder), torch.empty(0, dtype=torch.int64))])


def test_a_pool_of_other_pages_is_refused() -> None:
    """A float32 decoder does not write into int8 pages."""
    decoder = Decoder.random(CONFIGS["gqa"], seed=7)
    with pytest.raises(ValueError, match="float32 pages"):
        decoder.forward([Chunk(sequence(CONFIGS["gqa"], kv_dtype="int8"), TOKENS[:3])])


def test_the_same_seed_gives_the_same_decoder() -> None:
    """Random weights come from the seed alone."""
    config = CONFIGS["mqa-hybrid"]
    one, again, other = (naive(Decoder.random(config, seed), 9) for seed in (7, 7, 8))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
