"""One process at a time in a folder."""

from __future__ import annotations

import fcntl
import os
from typing import TYPE_CHECKING

from kvstore.errors import StoreError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["claim"]


def claim(folder: Path) -> int:
    """Makes the folder if need be and locks it until the descriptor that it gives is closed.

    The lock goes with the process, however that ends; a program it starts does not inherit it.
    Raises `StoreError` when the folder cannot be had or somebody else has it.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        claimed = os.open(folder / "LOCK", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StoreError(f"KV folder {folder}: {error.strerror or error}") from error
    try:
        fcntl.flock(claimed, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(claimed)
        raise StoreError(f"KV folder {folder} is in use by another process") from None
    return claimed
