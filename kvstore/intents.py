"""Deletions that were begun, on disk before the first byte goes, so that a crash only delays them.

The file is absent while nothing is under way, else eight bytes of XXH3-64 (big-endian) and a
msgpack array of [space, owner or nil].
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import msgpack
import xxhash

from kvstore.api import Scope

if TYPE_CHECKING:
    from pathlib import Path

    from kvstore.segment import Failpoint

__all__ = ["Intents"]


class Intents:
    """The scopes that are to be deleted from one folder. Every call raises `OSError`.

    `unreadable` says that there was a list and it is damaged.
    """

    def __init__(self, path: Path, failpoint: Failpoint) -> None:
        self._path = path
        self._failpoint = failpoint
        self.scopes: list[Scope] = []
        self.unreadable = False
        try:
            raw = path.read_bytes()
        except FileNotFoundError:
            return
        try:
            if xxhash.xxh3_64_digest(raw[8:]) != raw[:8]:
                raise ValueError("damaged")
            self.scopes = [Scope(space, owner) for space, owner in msgpack.unpackb(raw[8:])]
        except (ValueError, TypeError, msgpack.UnpackException):
            self.unreadable = True

    def add(self, scope: Scope) -> None:
        """Notes a scope, on the disk."""
        if scope not in self.scopes:
            self._store([*self.scopes, scope])
        self._failpoint("purge_noted")

    def remove(self, scope: Scope) -> None:
        """Its deletion is done."""
        self._store([s for s in self.scopes if s != scope])
        self._failpoint("purge_done")

    def clear(self) -> None:
        """Everything is done."""
        self._store([])
        self.unreadable = False

    def _store(self, scopes: list[Scope]) -> None:
        if scopes:
            body: bytes = msgpack.packb([(s.space, s.owner) for s in scopes])
            fresh = self._path.with_suffix(".new")
            with fresh.open("wb") as file:
                file.write(xxhash.xxh3_64_digest(body) + body)
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(self._path)
        else:
            self._path.unlink(missing_ok=True)
            self._path.with_suffix(".new").unlink(missing_ok=True)
        folder = os.open(self._path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        self.scopes = scopes
