"""The KV secret is made once, for its owner alone, and salts tenants apart."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from backends.local.secret import kv_secret, tenant_salt

if TYPE_CHECKING:
    from pathlib import Path


def test_made_once(tmp_path: Path) -> None:
    """The secret stays the same, has mode 0600, and leaves no other file."""
    folder = tmp_path / "new"
    secret = kv_secret(folder)
    assert len(secret) == 32
    assert kv_secret(folder) == secret
    assert [p.name for p in folder.iterdir()] == ["kv.secret"]
    assert (folder / "kv.secret").stat().st_mode & 0o777 == 0o600


def test_race(tmp_path: Path) -> None:
    """Processes that make it at the same moment get the same one."""
    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(kv_secret, [tmp_path] * 8))) == 1


def test_wrong_size(tmp_path: Path) -> None:
    """A damaged secret is refused; it is not replaced behind anyone's back."""
    (tmp_path / "kv.secret").write_bytes(b"short")
    with pytest.raises(ValueError, match="5 bytes, not 32"):
        kv_secret(tmp_path)


def test_tenants() -> None:
    """Tenants and secrets each change the salt."""
    salts = {tenant_salt(s, t) for s in (b"a" * 32, b"b" * 32) for t in ("x", "y")}
    assert len(salts) == 4
