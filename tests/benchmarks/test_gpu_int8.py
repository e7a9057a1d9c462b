"""Sequences in the benchmark's pool compute what sequences in the engine's do."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from backends.local.int8 import Int8Steps
from backends.local.model import Chunk, Decoder
from backends.local.synthetic import int8_model, synthetic_config
from backends.local.testing import sequence
from benchmarks.gpu_int8 import Pool, best_tokens

CONFIG = synthetic_config("1m-cai")


def test_same_as_engine() -> None:
    """Two sequences in chunks, over more pages than the windows keep: the same bits."""
    steps = Int8Steps(int8_model(CONFIG, 1))
    decoder, kv = Decoder(CONFIG, steps), sequence(CONFIG, kv_dtype="int8")
    pool = Pool(CONFIG, sequences=3, tokens=400, step_tokens=70, device="cpu")
    tokens = np.random.default_rng(1).integers(0, CONFIG.vocab_size, 400)
    rows, before = np.array([2, 0]), np.zeros(2, dtype=np.int64)
    for size in (70, 70, 64, 1, 1, 70, 1):
        new = tokens[before[0] : before[0] + size]
        other = new[::-1]
        batch = pool.batch(rows, before, np.full(2, size), np.concatenate([new, other]))
        with torch.inference_mode():
            found = steps.run(batch)
        expected = decoder.forward([Chunk(kv, torch.from_numpy(new.copy()))])
        assert torch.equal(found[:1], expected)
        assert not torch.equal(found[1:], expected) or size == 1
        assert best_tokens(steps, found)[0] == int(expected.argmax())
        before = before + size


def test_pages_that_do_not_fit() -> None:
    """More new tokens than the pool keeps for a window are refused, not overwritten."""
    pool = Pool(CONFIG, sequences=1, tokens=1024, step_tokens=64, device="cpu")
    with pytest.raises(ValueError, match="pages"):
        pool.same(1, 0, 1024)


def test_bytes() -> None:
    """A sequence takes what `bytes_for` says: global layers whole, windows of others."""
    pool = Pool(CONFIG, sequences=2, tokens=640, step_tokens=64, device="cpu")
    per_token = 2 * (CONFIG.head_dim + 2)
    pages = {None: 10, 32: 3}
    owners = [spec for spec in CONFIG.layers if spec.kv_source is None]
    expected = sum(64 * pages[spec.window] * per_token for spec in owners)
    assert pool.bytes_each == Pool.bytes_for(CONFIG, 640, 64) == expected
