"""gateway.counting: a model's own count where it is prepared, and an honest guess where not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import tokenizers
from tokenizers import models, pre_tokenizers

from gateway.counting import counter, estimate

if TYPE_CHECKING:
    from pathlib import Path


def test_estimate(tmp_path: Path) -> None:
    """Without a tokenizer the count is a guess, and says so."""
    counting = counter(tmp_path, "gemma-3-270m")
    assert counting.count is estimate
    assert "estimated" in counting.says
    assert [estimate(text) for text in ("", "a", "abcd", "abcde", "\ud800")] == [0, 1, 1, 2, 1]


def test_tokenizer(tmp_path: Path) -> None:
    """A prepared model counts by its own tokenizer, found by name or by folder."""
    folder = tmp_path / "models" / "tiny-abc"
    folder.mkdir(parents=True)
    words = {"[UNK]": 0, "hello": 1, "there": 2}
    made = tokenizers.Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.save(str(folder / "tokenizer.json"))
    for model in ("tiny", str(folder)):
        counting = counter(tmp_path, model)
        assert counting.count("hello there hello") == 3
        assert counting.says == "counted by tiny-abc"
    (folder / "tokenizer.json").write_text("{")
    assert "estimated" in counter(tmp_path, "tiny").says
