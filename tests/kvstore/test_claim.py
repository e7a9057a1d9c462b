"""One process at a time in a folder."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from kvstore.claim import claim
from kvstore.errors import StoreError

if TYPE_CHECKING:
    from pathlib import Path


def test_one_at_a_time(tmp_path: Path) -> None:
    """A folder that is claimed is refused with one clear line, and free again afterwards."""
    first = claim(tmp_path / "kv")
    with pytest.raises(StoreError, match=r"KV folder .*kv is in use by another process"):
        claim(tmp_path / "kv")
    os.close(first)
    os.close(claim(tmp_path / "kv"))


def test_programs_that_are_started_do_not_hold_it(tmp_path: Path) -> None:
    """What the holder starts does not keep the folder when the holder lets go."""
    first = claim(tmp_path)
    wait = [sys.executable, "-c", "input()"]
    with subprocess.Popen(wait, stdin=subprocess.PIPE, close_fds=False) as child:
        os.close(first)
        os.close(claim(tmp_path))
        child.communicate(b"\n")


def test_unusable(tmp_path: Path) -> None:
    """A folder that cannot be made is refused with one clear line."""
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"KV folder .*: Not a directory"):
        claim(tmp_path / "file" / "kv")
