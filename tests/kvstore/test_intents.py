"""Deletions that were begun, noted on disk."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from kvstore.api import Scope
from kvstore.intents import Intents
from kvstore.segment import no_failpoint

if TYPE_CHECKING:
    from pathlib import Path

ONE, OTHER = Scope(b"s" * 16, b"o" * 16), Scope(b"t" * 16)


def test_round_trip(tmp_path: Path) -> None:
    """What was noted is there after a restart, until it is done; then no file is left."""
    first = Intents(tmp_path / "PURGE", no_failpoint)
    first.add(ONE)
    first.add(OTHER)
    first.add(ONE)
    again = Intents(tmp_path / "PURGE", no_failpoint)
    assert again.scopes == [ONE, OTHER]
    assert not again.unreadable
    again.remove(ONE)
    assert Intents(tmp_path / "PURGE", no_failpoint).scopes == [OTHER]
    again.remove(OTHER)
    assert list(tmp_path.iterdir()) == []


def test_every_flipped_byte_is_found(tmp_path: Path) -> None:
    """A list that is not as it was written is unreadable, never another list."""
    Intents(tmp_path / "PURGE", no_failpoint).add(ONE)
    raw = (tmp_path / "PURGE").read_bytes()
    for index in range(len(raw)):
        hurt = bytearray(raw)
        hurt[index] ^= 0x41
        (tmp_path / "PURGE").write_bytes(hurt)
        found = Intents(tmp_path / "PURGE", no_failpoint)
        assert (found.unreadable, found.scopes) == (True, [])


@pytest.mark.parametrize("size", [0, 1, 8, 20])
def test_cut_short(tmp_path: Path, size: int) -> None:
    """So is one that was cut short; clearing forgets it."""
    Intents(tmp_path / "PURGE", no_failpoint).add(ONE)
    (tmp_path / "PURGE").write_bytes((tmp_path / "PURGE").read_bytes()[:size])
    found = Intents(tmp_path / "PURGE", no_failpoint)
    assert found.unreadable
    found.clear()
    assert not found.unreadable
    assert list(tmp_path.iterdir()) == []
