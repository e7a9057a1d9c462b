"""gateway.folder: one server a folder."""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING

import pytest

from gateway.errors import StartError
from gateway.folder import DataFolder

if TYPE_CHECKING:
    from pathlib import Path


def test_private_and_exclusive(tmp_path: Path) -> None:
    """A new folder is only ours; a second server is refused until the first lets go."""
    path = tmp_path / "a" / "b"
    first = DataFolder(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    with pytest.raises(StartError, match="in use"):
        DataFolder(path)
    first.close()
    DataFolder(path).close()


def test_cannot_be_made(tmp_path: Path) -> None:
    """A folder below a file is one clear error."""
    (tmp_path / "file").touch()
    with pytest.raises(StartError, match="cannot be written"):
        DataFolder(tmp_path / "file" / "data")
