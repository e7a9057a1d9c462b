"""Zip files from strangers, read by their central directory, nothing written to any disk.

Our own reader, because the limits come before the directory is taken in, and because one reading
of the file leaves no room for two meanings. Zip64, encryption, links and methods other than
stored and deflated are refused. Source: PKWARE APPNOTE 6.3, sections 4.3 and 4.4.
"""

from __future__ import annotations

import re
import struct
import zlib
from typing import TYPE_CHECKING, NamedTuple

from personas.persona import CardError

if TYPE_CHECKING:
    from personas.limits import Findings, ImportLimits, Inflater

__all__ = ["Archive", "has_archive"]

_END = struct.Struct("<4s4H2LH")
_ENTRY = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_END_MARK, _ENTRY_MARK, _LOCAL_MARK = b"PK\5\6", b"PK\1\2", b"PK\3\4"
_TAIL = _END.size + 0xFFFF
_DRIVE = re.compile(r"[A-Za-z]:")


class _Member(NamedTuple):
    offset: int
    packed: int
    size: int
    crc: int
    method: int


def has_archive(raw: bytes) -> bool:
    """Whether a zip file ends this file, as in a picture with an archive behind it."""
    return _find_end(raw) is not None


class Archive:
    """The members of a zip file by path; each is inflated when it is asked for.

    `prefix` are the bytes before the archive: a picture, a program, or nothing.
    """

    def __init__(
        self, raw: bytes, limits: ImportLimits, inflater: Inflater, findings: Findings
    ) -> None:
        """Reads the directory. Raises `CardError`: `bad_zip`, `zip_too_many`, `zip_slip`,
        `zip_link`, `zip_encrypted`, `zip_duplicate`, `inflate_bomb`."""
        self._raw = raw
        self._limits = limits
        self._inflater = inflater
        self._findings = findings
        self._members: dict[str, _Member] = {}
        self._base = 0
        self._read_directory()
        self.prefix = raw[: self._base] if self._base else self._before_first()

    @property
    def paths(self) -> tuple[str, ...]:
        """Every file's path, in the order of the directory."""
        return tuple(self._members)

    def read(self, path: str) -> bytes:
        """One member's bytes. Raises `KeyError`, and `CardError`: `bad_zip`, `bad_deflate`,
        `inflate_bomb`. A wrong checksum is a finding."""
        member = self._members[path]
        at = self._base + member.offset
        head = self._raw[at : at + _LOCAL.size]
        if len(head) < _LOCAL.size or not head.startswith(_LOCAL_MARK):
            raise CardError("bad_zip", f"{path} is not where the directory says", where=path)
        *_, name_size, extra_size = _LOCAL.unpack(head)
        at += _LOCAL.size + name_size + extra_size
        packed = self._raw[at : at + member.packed]
        if len(packed) < member.packed:
            raise CardError("bad_zip", f"{path} ends after the file's end", where=path)
        if member.method == 0:
            data = self._inflater.take(packed, where=path)
        else:
            data = self._inflater.inflate(packed, where=path, most=member.size, raw=True)
        if zlib.crc32(data) != member.crc:
            self._findings.add("bad_crc", f"{path} has a wrong checksum", where=path)
        return data

    def _read_directory(self) -> None:
        raw, limits = self._raw, self._limits
        end = _find_end(raw)
        if end is None:
            raise CardError("bad_zip", "the zip file has no directory")
        _, disk, start_disk, here, count, size, offset, _ = _END.unpack_from(raw, end)
        if disk or start_disk or here != count or 0xFFFFFFFF in (size, offset) or count == 0xFFFF:
            raise CardError("bad_zip", "zip files in parts and Zip64 are not read")
        if count > limits.zip_entries:
            message = f"the zip file has {count} members, more than {limits.zip_entries}"
            raise CardError("zip_too_many", message)
        self._base = end - size - offset
        if self._base < 0:
            raise CardError("bad_zip", "the zip file's directory is not where its end says")
        at, total, folded = end - size, 0, dict[str, str]()
        for _ in range(count):
            if at + _ENTRY.size > end or raw[at : at + 4] != _ENTRY_MARK:
                raise CardError("bad_zip", "the zip file's directory is broken")
            (_, made, _, flags, method, _, _, crc, packed, unpacked, name_size, extra_size,
             comment_size, _, _, attributes, offset) = _ENTRY.unpack_from(raw, at)  # fmt: skip
            name = raw[at + _ENTRY.size : at + _ENTRY.size + name_size]
            at += _ENTRY.size + name_size + extra_size + comment_size
            path = self._path(name, utf8=bool(flags & 0x800))
            if path.endswith("/"):
                continue
            if flags & 0x41:
                raise CardError("zip_encrypted", f"{path} is encrypted", where=path)
            if made >> 8 == 3 and attributes >> 16 & 0o170000 == 0o120000:
                raise CardError("zip_link", f"{path} is a link", where=path)
            if method not in (0, 8) or (method == 0 and packed != unpacked):
                raise CardError("bad_zip", f"{path} is packed in an unknown way", where=path)
            if path in self._members:
                raise CardError("zip_duplicate", f"{path} is there twice", where=path)
            total += unpacked
            self._check_size(path, packed, unpacked, total)
            if (twin := folded.setdefault(path.casefold(), path)) != path:
                self._findings.add(
                    "zip_case_clash", f"differs from {twin} in case only", where=path
                )
            self._members[path] = _Member(offset, packed, unpacked, crc, method)

    def _check_size(self, path: str, packed: int, unpacked: int, total: int) -> None:
        limits = self._limits
        steep = unpacked > max(limits.ratio_floor, limits.ratio * packed)
        if unpacked > limits.zip_entry_bytes or total > limits.inflated_bytes or steep:
            message = f"{path} would have {unpacked} bytes from {packed}, {total} with those before"
            raise CardError("inflate_bomb", message, where=path)

    def _path(self, name: bytes, *, utf8: bool) -> str:
        """A relative path with `/`. Raises `CardError`: `zip_slip`."""
        path = name.decode("utf-8" if utf8 else "cp437", errors="replace").replace("\\", "/")
        parts = path.removesuffix("/").split("/")
        if (
            len(name) > self._limits.zip_path
            or "\0" in path
            or _DRIVE.match(path)
            or any(part in ("", ".", "..") for part in parts)
        ):
            message = f"a member's path {path[:80]!r} is not one inside the archive"
            raise CardError("zip_slip", message, where=path[:80])
        return path

    def _before_first(self) -> bytes:
        """The bytes before the first member, where the writer counted from the file's start."""
        return self._raw[: min((m.offset for m in self._members.values()), default=0)]


def _find_end(raw: bytes) -> int | None:
    """Where the record that ends a zip file begins, within the comment's longest length."""
    at = raw.rfind(_END_MARK, max(0, len(raw) - _TAIL))
    while at >= 0:
        if at + _END.size <= len(raw):
            comment = int.from_bytes(raw[at + 20 : at + 22], "little")
            if at + _END.size + comment <= len(raw):
                return at
        at = raw.rfind(_END_MARK, max(0, len(raw) - _TAIL), at)
    return None
