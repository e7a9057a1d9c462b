"""What `greenroom kv` does with the folder of a disk tier: stats, verify, compact, purge.

`stats` and `verify` change nothing. All but `stats` raise `StoreError` while a running engine has
the folder.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lmdb import verify as lmdb_verify

from kvstore.claim import claim
from kvstore.disk import DiskTier
from kvstore.errors import StoreError
from kvstore.segment import Segment

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from kvstore.api import Scope

__all__ = [
    "CompactReport",
    "FolderStats",
    "GenerationStats",
    "PurgeReport",
    "VerifyReport",
    "compact",
    "purge",
    "spaces",
    "stats",
    "verify",
]

NO_QUOTA = 1 << 62


@dataclass(frozen=True, slots=True)
class GenerationStats:
    """One generation: its blocks, their payload, and what its files take on the disk."""

    name: str
    blocks: int
    payload_bytes: int
    disk_bytes: int


@dataclass(frozen=True, slots=True)
class FolderStats:
    """Oldest generation first. `spaces` counts tenants' spaces, `owners` owners in them."""

    generations: tuple[GenerationStats, ...]
    spaces: int
    owners: int
    in_use: bool
    purges_pending: bool

    @property
    def blocks(self) -> int:
        """Of all generations."""
        return sum(g.blocks for g in self.generations)

    @property
    def disk_bytes(self) -> int:
        """Of all generations."""
        return sum(g.disk_bytes for g in self.generations)


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """How many records are right, how many are not, and one line for each problem."""

    records: int
    damaged: int
    problems: tuple[str, ...]

    @property
    def is_clean(self) -> bool:
        """Whether nothing was found."""
        return not self.problems


@dataclass(frozen=True, slots=True)
class CompactReport:
    """How many generations were rewritten, and the bytes on the disk before and after."""

    rewritten: int
    before: int
    after: int


@dataclass(frozen=True, slots=True)
class PurgeReport:
    """How many blocks were deleted; none of their bytes is left in the folder."""

    deleted: int


def stats(folder: Path) -> FolderStats:
    """Counts what is in the folder, from the heads of the records; also while it is in use."""
    spaces: set[bytes] = set()
    owners: set[tuple[bytes, bytes]] = set()
    found = []
    for path in _generations(folder):
        blocks = payload = 0
        for _, head in _segment(path).scan():
            blocks += 1
            payload += head.payload_bytes
            spaces.add(head.key.prefix.space)
            owners.add((head.key.prefix.space, head.owner))
        found.append(GenerationStats(path.name, blocks, payload, _disk_bytes(path)))
    in_use = False
    if folder.is_dir():
        try:
            os.close(claim(folder))
        except StoreError:
            in_use = True
    return FolderStats(tuple(found), len(spaces), len(owners), in_use, (folder / "PURGE").exists())


def spaces(folder: Path) -> set[bytes]:
    """The spaces that any record in the folder belongs to; also while it is in use."""
    segments = map(_segment, _generations(folder))
    return {head.key.prefix.space for segment in segments for _, head in segment.scan()}


def verify(folder: Path) -> VerifyReport:
    """Reads every byte: records against their checksums, the LMDB files with its verifier."""
    records = damaged = 0
    problems: list[str] = []
    with _alone(folder):
        for path in _generations(folder):
            if (path / "data.mdb").exists():
                try:
                    found = lmdb_verify.verify(str(path))
                except Exception as error:
                    found = [str(error) or type(error).__name__]
                problems += [f"{path.name}: index: {problem}" for problem in found]
            segment = _segment(path)
            extents = []
            for place, head in segment.scan():
                payload = memoryview(bytearray(head.payload_bytes))
                segment.read(place + head.size, [payload])
                extents.append((place, head.size + head.payload_bytes))
                if head.fits(payload):
                    records += 1
                else:
                    damaged += 1
                    problems.append(f"{path.name}: the record at {place} is damaged")
            problems += [
                f"{path.name}: {size} bytes from {place} on belong to no record"
                for place, size in segment.leftovers(extents)
            ]
    return VerifyReport(records, damaged, tuple(problems))


def compact(folder: Path) -> CompactReport:
    """Rewrites generations with much deleted in them; the disk gets the bytes back."""
    before = sum(map(_disk_bytes, _generations(folder)))
    with _opened(folder) as tier:
        rewritten = tier.compact()
    return CompactReport(rewritten, before, sum(map(_disk_bytes, _generations(folder))))


def purge(folder: Path, scope: Scope) -> PurgeReport:
    """Deletes a scope's blocks, bytes included; what an earlier attempt left is finished too."""
    with _opened(folder) as tier:
        return PurgeReport(tier.purge(scope))


@contextlib.contextmanager
def _opened(folder: Path) -> Iterator[DiskTier]:
    if not folder.is_dir():
        raise StoreError(f"{folder} is no folder")
    tier = DiskTier(folder, NO_QUOTA)
    try:
        yield tier
    finally:
        tier.close()


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keeps others out of the folder. Raises `StoreError` when somebody is in it."""
    if not folder.is_dir():
        raise StoreError(f"{folder} is no folder")
    lock = claim(folder)
    try:
        yield
    finally:
        os.close(lock)


def _generations(folder: Path) -> list[Path]:
    return sorted(p for p in folder.glob("gen-*") if (p / "records").is_file())


def _segment(path: Path) -> Segment:
    return Segment(path / "records")


def _disk_bytes(path: Path) -> int:
    return sum(file.stat().st_blocks * 512 for file in path.iterdir())
