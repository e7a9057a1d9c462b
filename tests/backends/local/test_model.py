"""The decoder and its cache on tiny random models, against plain recomputation."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.local.cache import SequenceKV
from backends.local.model import Chunk, Decoder
from backends.local.model_config import ModelConfig
from kvstore.api import Block, BlockKey, PrefixKey

if TYPE_CHECKING:
    from collections.abc import Iterator

CONFIGS = {
    "mqa-hybrid": ModelConfig.synthetic(),
    "gqa": ModelConfig.synthetic(kv_heads=2, windows=(None, None), qk_norm=False),
    "mha": ModelConfig.synthetic(kv_heads=4, windows=(16, None)),
    "shared-kv": ModelConfig.synthetic(windows=(32, None, 32, None), kv_sources={2: 0, 3: 1}),
}
DECODERS = {name: Decoder.random(config, seed=7) for name, config in CONFIGS.items()}
TOKENS = torch.randint(0, 512, (700,), generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny matrices: a second thread would only be waited for."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def run(decoder: Decoder, kv: SequenceKV, start: int, end: int, step: int) -> torch.Tensor:
    """Feeds TOKENS [start, end) in chunks of `step`; the last logits [vocab]."""
    for at in range(start, end, step):
        logits = decoder.forward([Chunk(kv, TOKENS[at : min(at + step, end)])])
    return logits[0]


def blocks_of(kv: SequenceKV, length: int) -> list[Block]:
    """What the store would hold of the prefix of `length` tokens."""
    layout = kv.config.kv_layout()
    blocks = []
    for group in layout.groups:
        for start in range(layout.first_needed(group, length), length, layout.block_tokens):
            end = min(start + layout.block_tokens, length)
            key = BlockKey(PrefixKey(b"space", b"digest", end, rolling=0), start, group.id)
            ids = tuple(TOKENS[start:end].tolist())
            blocks.append(Block(key, ids, kv.export(group, start, end)))
    return blocks


def naive(config: ModelConfig, decoder: Decoder, length: int) -> torch.Tensor:
    """The last logits by one chunk in a cache that has seen nothing."""
    return decoder.forward([Chunk(SequenceKV(config), TOKENS[:length])])[0]


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("step", [1, 37, 64, 300])
def test_chunks_give_what_the_whole_prompt_gives(name: str, step: int) -> None:
    """Whatever the chunk size, the logits are those of one pass, far beyond the window."""
    whole = naive(CONFIGS[name], DECODERS[name], 300)
    parts = run(DECODERS[name], SequenceKV(CONFIGS[name]), 0, 300, step)
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-4)


def test_a_sliding_layer_sees_its_window_and_no_more() -> None:
    """With one layer of window w, the last w tokens decide, and all of them count."""
    config = ModelConfig.synthetic(windows=(8,))
    decoder = Decoder.random(config, seed=3)

    def logits(tokens: torch.Tensor) -> torch.Tensor:
        return decoder.forward([Chunk(SequenceKV(config), tokens)])[0]

    def changed(at: int) -> torch.Tensor:
        tokens = TOKENS[:300].clone()
        tokens[at] = (tokens[at] + 1) % config.vocab_size
        return tokens

    base = logits(TOKENS[:300])
    assert not torch.allclose(logits(changed(300 - 8)), base)
    torch.testing.assert_close(logits(changed(300 - 9)), base)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_mixed_batch_gives_what_each_chunk_gives_alone(name: str) -> None:
    """Prefill chunks and decodes of several sequences in one pass do not touch each other."""
    config, decoder = CONFIGS[name], DECODERS[name]
    lengths, steps = (0, 90, 33, 200), (70, 1, 5, 1)
    together = [SequenceKV(config) for _ in lengths]
    for kv, length in zip(together, lengths, strict=True):
        if length:
            run(decoder, kv, 0, length, 64)
    logits = decoder.forward(
        [
            Chunk(kv, TOKENS[length : length + step])
            for kv, length, step in zip(together, lengths, steps, strict=True)
        ]
    )
    assert logits.shape == (4, config.vocab_size)
    for row, length, step in zip(logits, lengths, steps, strict=True):
        alone = naive(config, decoder, length + step)
        torch.testing.assert_close(row, alone, rtol=1e-4, atol=1e-4)
    assert [kv.length for kv in together] == [70, 91, 38, 201]


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("length", [1, 64, 100, 190])
def test_a_restored_cache_goes_on_bit_for_bit(name: str, length: int) -> None:
    """Blocks exported from one cache and restored into another give the same bytes and logits."""
    config, decoder = CONFIGS[name], DECODERS[name]
    cold = SequenceKV(config)
    run(decoder, cold, 0, length, 64)
    blocks = blocks_of(cold, length)
    warm = SequenceKV(config)
    warm.restore(config.kv_layout(), blocks, length)
    assert warm.length == length
    assert blocks_of(warm, length) == blocks
    expected = run(decoder, cold, length, length + 30, 1)
    assert torch.equal(run(decoder, warm, length, length + 30, 1), expected)


@settings(max_examples=15, deadline=None)
@given(st.data())
def test_every_prefix_inside_the_last_chunk_can_be_exported(data: st.DataObject) -> None:
    """However tokens were fed, the blocks of any prefix that ends in the last chunk are held."""
    config = ModelConfig.synthetic(windows=(40, None))
    decoder = DECODERS.setdefault("export", Decoder.random(config, seed=5))
    kv = SequenceKV(config)
    for step in data.draw(st.lists(st.integers(1, 200), min_size=1, max_size=3)):
        before = kv.length
        decoder.forward([Chunk(kv, TOKENS[before : before + step])])
    length = data.draw(st.integers(before + 1, kv.length))
    layout = config.kv_layout()
    for block in blocks_of(kv, length):
        group = layout.groups[block.key.group]
        assert len(block.payload) == block.key.tokens * group.bytes_per_token


def test_a_sliding_group_does_not_grow_with_the_context() -> None:
    """After thousands of tokens a local layer holds its window and some slack."""
    config = ModelConfig.synthetic(windows=(32,))
    decoder = Decoder.random(config, seed=0)
    kv = SequenceKV(config)
    for _ in range(20):
        decoder.forward([Chunk(kv, TOKENS[:200])])
    group = config.kv_layout().groups[0]
    assert kv.length == 4000
    assert kv.nbytes <= 512 * group.bytes_per_token
    assert kv.first_held(group) > 3000
    with pytest.raises(ValueError, match="holds"):
        kv.export(group, 0, 64)


def test_a_wrong_set_of_blocks_is_refused_and_changes_nothing() -> None:
    """A gap, a missing tail, a short payload or a full cache is an error; the cache stays empty."""
    config, decoder = CONFIGS["mqa-hybrid"], DECODERS["mqa-hybrid"]
    layout = config.kv_layout()
    cold = SequenceKV(config)
    run(decoder, cold, 0, 150, 150)
    blocks = blocks_of(cold, 150)
    short = Block(blocks[0].key, blocks[0].token_ids, bytes(blocks[0].payload)[:-1])
    for wrong in (blocks[1:], blocks[:-1], [blocks[0], *blocks[2:]], [short, *blocks[1:]], []):
        warm = SequenceKV(config)
        with pytest.raises(ValueError, match="group"):
            warm.restore(layout, wrong, 150)
        assert warm.length == 0
        warm.restore(layout, blocks, 150)
        with pytest.raises(ValueError, match="empty"):
            warm.restore(layout, blocks, 150)


def test_an_empty_chunk_is_refused() -> None:
    """A chunk has at least one token."""
    config = CONFIGS["gqa"]
    with pytest.raises(ValueError, match="at least one"):
        DECODERS["gqa"].forward([Chunk(SequenceKV(config), torch.empty(0, dtype=torch.int64))])


def test_the_same_seed_gives_the_same_decoder() -> None:
    """Random weights come from the seed alone."""
    config = CONFIGS["mqa-hybrid"]
    again = Decoder.random(config, seed=7)
    other = Decoder.random(config, seed=8)
    assert torch.equal(naive(config, again, 9), naive(config, DECODERS["mqa-hybrid"], 9))
    assert not torch.equal(naive(config, other, 9), naive(config, again, 9))
