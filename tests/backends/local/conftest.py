"""One tiny real model for every test of this folder, and the packaged ones, converted once.

Conversions are kept in the folder that TEST_MODELS names, else in pytest's cache.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from backends.local.checkpoint import load
from backends.local.kernels import cpu
from backends.local.model import Decoder
from backends.local.model_config import ModelConfig
from backends.local.packaged import prepare
from backends.local.progress import NoProgress
from backends.local.testing import write_tiny_model
from backends.local.tokenizer import Tokenizer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backends.local.checkpoint import LoadedModel
    from backends.local.kernels.cpu import CpuKernels
    from backends.local.model import Chunk


@pytest.fixture(autouse=True)
def patient_welcome(monkeypatch: pytest.MonkeyPatch) -> None:
    """How busy this machine is does not decide who is admitted together."""
    monkeypatch.setattr("backends.local.engine.WELCOME_S", 60.0)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder of a tiny Llama with random weights."""
    return write_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def models_dir(pytestconfig: pytest.Config) -> Path:
    """The data folder that holds converted packaged models from one run to the next."""
    named = os.environ.get("TEST_MODELS")
    if named:
        return Path(named)
    cache = pytestconfig.cache
    assert cache is not None
    return cache.mkdir("greenroom-models")


@pytest.fixture(scope="session")
def packaged_gemma(models_dir: Path) -> Path:
    """The folder of the packaged gemma-3-270m."""
    return prepare("gemma-3-270m", models_dir, NoProgress())


@pytest.fixture(scope="session")
def packaged_smollm2(models_dir: Path) -> Path:
    """The folder of the packaged SmolLM2-135M-Instruct."""
    return prepare("smollm2-135m-instruct", models_dir, NoProgress())


@pytest.fixture(scope="session")
def gemma_tokenizer(packaged_gemma: Path) -> Tokenizer:
    """Gemma's vocabulary."""
    return Tokenizer.load(packaged_gemma)


@pytest.fixture(scope="session")
def smollm2_tokenizer(packaged_smollm2: Path) -> Tokenizer:
    """SmolLM2's vocabulary."""
    return Tokenizer.load(packaged_smollm2)


@pytest.fixture(scope="session")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> CpuKernels:
    """The C++ kernels of this machine, compiled once."""
    built = cpu.build(tmp_path_factory.mktemp("kernels"))
    if built is None:
        pytest.skip("no C++ compiler, or no AVX2")
    return built


@pytest.fixture(scope="module")
def model(tiny_folder: Path) -> LoadedModel:
    torch.set_num_threads(1)
    return load(tiny_folder)


@pytest.fixture(params=["global", "windows"])
def either_model(request: pytest.FixtureRequest, model: LoadedModel) -> LoadedModel:
    """Global attention alone, and sliding windows much shorter than the conversation."""
    if request.param == "global":
        return model
    config = ModelConfig.synthetic(
        vocab_size=model.config.vocab_size, windows=(48, 48, None, 80), hidden_size=32
    )
    visible = [model.tokenizer.encode_text(chr(code))[0] for code in range(33, 127)]
    silent = torch.ones(config.vocab_size, dtype=torch.bool)
    silent[visible] = False

    class Speaking(Decoder):
        """Says printable ASCII alone, so that a reply's text has one spelling in tokens."""

        def forward(self, chunks: Sequence[Chunk]) -> torch.Tensor:
            return super().forward(chunks).masked_fill(silent, -1e9)

    return replace(model, config=config, decoder=Speaking.random(config, 3))
