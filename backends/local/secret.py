"""The secret that keeps tenants' KV apart: made once per data folder, never shown.

Whoever reads it can tell whether a given text is in the cache, so the file is for its owner alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import secrets
import tempfile
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["kv_secret", "tenant_salt"]

FILE = "kv.secret"
SIZE = 32


def kv_secret(data_dir: Path) -> bytes:
    """The 32 bytes in `<data_dir>/kv.secret`, made (mode 0600) where there is none.

    Two processes that make it at once get the same one. Raises `OSError`, and `ValueError` when
    the file has another size: a new secret would silently orphan the whole cache.
    """
    path = data_dir / FILE
    try:
        secret = path.read_bytes()
    except FileNotFoundError:
        secret = _make(path)
    if len(secret) != SIZE:
        raise ValueError(f"{path} has {len(secret)} bytes, not {SIZE}; delete it to start afresh")
    return secret


def tenant_salt(secret: bytes, tenant: str) -> bytes:
    """The tenant's salt: HMAC-SHA256 of its name."""
    return hmac.new(secret, tenant.encode(), hashlib.sha256).digest()


def _make(path: Path) -> bytes:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{FILE}.", dir=path.parent)  # mode 0600
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_bytes(SIZE))
            file.flush()
            os.fsync(file.fileno())
        # A link appears whole or not at all and never replaces another process's secret.
        with contextlib.suppress(FileExistsError):
            os.link(name, path)
    finally:
        os.unlink(name)
    return path.read_bytes()
