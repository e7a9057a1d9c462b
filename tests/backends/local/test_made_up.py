"""A synthetic model is an engine's model like any other, and its name is checked."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from backends.api import Finished, Sampling
from backends.local.assembly import assemble
from backends.local.errors import ModelError, UnsupportedModel
from backends.local.made_up import made_up, synthetic_name
from backends.local.progress import NoProgress
from backends.local.settings import EngineSettings
from backends.local.synthetic import synthetic_config
from backends.testing import turn

if TYPE_CHECKING:
    from pathlib import Path

    from tests.backends.local.rig import Heard


def settings(folder: Path, model: str, device: str = "cpu") -> EngineSettings:
    return EngineSettings(folder, model, device, context=512, device_bytes=32 << 20, threads=1)


def test_speaks(tmp_path: Path) -> None:
    """`synthetic:1m-cai` in the settings gives an engine that answers, and the same each time."""
    replies = []
    for folder in ("one", "two"):
        made = assemble(settings(tmp_path / folder, "synthetic:1m-cai"), NoProgress())
        heard: Heard = []
        made.engine.submit(
            turn("Hello?", sampling=Sampling(temperature=0.0, max_tokens=8)), heard.append
        )
        while not heard or not isinstance(heard[-1], Finished):
            made.engine.step()
        made.engine.stop()
        made.engine.run()
        assert made.capabilities.model == "synthetic:1m-cai"
        assert "random" in made.capabilities.notice
        replies.append(heard[-1].sampled)
    assert replies[0] == replies[1]


def test_unknown_names(tmp_path: Path) -> None:
    """A name that is not known is refused with those that are; so is a device that is not there."""
    with pytest.raises(UnsupportedModel, match="13b-cai"):
        assemble(settings(tmp_path, "synthetic:2b-cai"), NoProgress())
    with pytest.raises(UnsupportedModel, match="13b-cai"):
        assemble(settings(tmp_path, "synthetic:"), NoProgress())
    assert synthetic_name("gemma-3-270m") is None


def test_no_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """`cuda` where there is none is refused before any weight is drawn."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ModelError, match="no CUDA"):
        made_up("13b-cai", device="cuda")


def test_vocabulary() -> None:
    """As many ids as the model has, each of its own text; any text comes back."""
    model = made_up("1m-cai")
    vocabulary = model.tokenizer
    pieces = {vocabulary.token_bytes(at) for at in range(synthetic_config("1m-cai").vocab_size)}
    assert len(pieces) == vocabulary.vocab_size == model.config.vocab_size
    text = "Naïve – “quoted”, 日本"
    ids = vocabulary.encode_text(text)
    assert b"".join(map(vocabulary.token_bytes, ids)).decode() == text
