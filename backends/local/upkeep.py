"""The KV folder of a data folder, for people: count, check, shrink, delete. No torch.

What `kvstore.upkeep` does, by the names that the gateway knows. Every function raises
`BackendError` with one line when the folder cannot be used (a running engine has it, say).
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from backends.errors import BackendError, BackendErrorCode
from backends.local.secret import kv_secret, tenant_salt
from kvstore import upkeep
from kvstore.api import Scope
from kvstore.errors import StoreError
from kvstore.keys import owner_tag

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from kvstore.upkeep import CompactReport, FolderStats, VerifyReport

__all__ = ["compact", "purge", "stats", "verify"]


def stats(data: Path) -> FolderStats:
    """Counts blocks and bytes, also while an engine runs."""
    with _folder(data) as folder:
        return upkeep.stats(folder)


def verify(data: Path) -> VerifyReport:
    """Reads every byte."""
    with _folder(data) as folder:
        return upkeep.verify(folder)


def compact(data: Path) -> CompactReport:
    """Rewrites what is mostly deleted."""
    with _folder(data) as folder:
        return upkeep.compact(folder)


def purge(data: Path, tenant: str, owner: str | None) -> int:
    """Deletes the blocks of an owner, named as for `Backend.forget`; with None, everybody's."""
    with _folder(data) as folder:
        tag = None if owner is None else owner_tag(tenant_salt(kv_secret(data), tenant), owner)
        scopes = [Scope(space, tag) for space in sorted(upkeep.spaces(folder))]
        return sum(upkeep.purge(folder, scope).deleted for scope in scopes)


@contextlib.contextmanager
def _folder(data: Path) -> Iterator[Path]:
    folder = data / "kv"
    if not folder.is_dir():
        raise BackendError(BackendErrorCode.BAD_REQUEST, f"there is no cache in {data} yet")
    try:
        yield folder
    except StoreError as error:
        raise BackendError(BackendErrorCode.UNAVAILABLE, error.message) from error
