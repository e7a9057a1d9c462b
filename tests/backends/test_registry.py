"""Backends by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from backends.errors import BackendError, BackendErrorCode
from backends.local.settings import EngineSettings
from backends.registry import make, names

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("name", ["local", "scripted"])
def test_makes_ours(name: str, tmp_path: Path) -> None:
    """Our backends are made by name, not started."""
    assert name in names()
    assert make(name, EngineSettings(data_dir=tmp_path)).name == name


def test_unknown_names_the_nearest(tmp_path: Path) -> None:
    """An unknown name is refused and the nearest one named."""
    with pytest.raises(BackendError) as caught:
        make("scriptd", EngineSettings(data_dir=tmp_path))
    assert caught.value.code is BackendErrorCode.BAD_REQUEST
    assert "'scripted'" in caught.value.message
