"""One tiny real model for every test of this folder, and the packaged ones, converted once.

Conversions are kept in the folder that TEST_MODELS names, else in pytest's cache.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from backends.local.packaged import prepare
from backends.local.progress import NoProgress
from backends.local.testing import write_tiny_model
from backends.local.tokenizer import Tokenizer


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
