"""The data folder: made, private, writable, and used by one server at a time."""

from __future__ import annotations

import fcntl
import os
from typing import TYPE_CHECKING

from gateway.errors import StartError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["DataFolder"]


class DataFolder:
    """Holds the folder's lock until `close`; a killed process loses it with its life.

    Raises `StartError` when the folder cannot be made or written, or another server has it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StartError(
                f"the data folder {path} cannot be written: {error.strerror}"
            ) from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._lock)
            raise StartError(
                f"the data folder {path} is in use by another greenroom server"
            ) from error

    def close(self) -> None:
        """Lets go of the folder."""
        os.close(self._lock)
