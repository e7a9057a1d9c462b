"""`greenroom kv`: what it prints, what it deletes, what it refuses."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import structlog

from backends.local.secret import kv_secret, tenant_salt
from gateway.cli import main
from gateway.composing import TENANT
from kvstore.disk import DiskTier
from kvstore.keys import owner_tag
from kvstore.testing import blocks, chain

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ROOM = 1 << 20


@pytest.fixture(autouse=True)
def restored_logs() -> Iterator[None]:
    """The command sets logs up for the captured stderr; the next test has another."""
    yield
    structlog.reset_defaults()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data folder whose cache holds two conversations and a persona."""
    salt = tenant_salt(kv_secret(tmp_path), TENANT)
    tier = DiskTier(tmp_path / "kv", ROOM)
    for n, name in enumerate(("conversation:c_1", "conversation:c_2", "persona:maren@abc")):
        tier.put(blocks(chain(range(n * 100, n * 100 + 20)), owner=owner_tag(salt, name)))
    tier.close()
    return tmp_path


def kv(data: Path, *words: str) -> int:
    return main(["kv", *words, "--data", str(data)])


def test_stats(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """stats counts blocks, owners and bytes, also while somebody uses the folder."""
    tier = DiskTier(data / "kv", ROOM)
    assert kv(data, "stats") == 0
    tier.close()
    out = capsys.readouterr().out
    assert "18 blocks  in 1 spaces, of 3 owners" in out
    assert "a server is using it now" in out


def test_verify(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """verify is clean on a sound cache and names a damaged record with exit code 1."""
    assert kv(data, "verify") == 0
    assert "18 records are right, 0 are damaged" in capsys.readouterr().out
    records = next((data / "kv").glob("gen-*/records"))
    raw = bytearray(records.read_bytes())
    raw[-70] ^= 0xFF
    records.write_bytes(raw)
    assert kv(data, "verify") == 1
    assert "damaged" in capsys.readouterr().out


def test_purge(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """purge takes one conversation, one persona, then everything."""
    for words, deleted in (
        (["--conversation", "c_1"], 6),
        (["--conversation", "c_1"], 0),
        (["--persona", "maren@abc"], 6),
        (["--all"], 6),
    ):
        assert kv(data, "purge", *words) == 0
        assert capsys.readouterr().out == f"{deleted} blocks deleted\n"
    assert kv(data, "compact") == 0


def test_refusals(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder in use, or without a cache, is refused with one line."""
    tier = DiskTier(data / "kv", ROOM)
    for words in (["verify"], ["compact"], ["purge", "--all"]):
        assert kv(data, *words) == 2
        assert "in use by another process" in capsys.readouterr().err
    tier.close()
    assert kv(tmp_path / "none", "stats") == 2
    assert "there is no cache" in capsys.readouterr().err
