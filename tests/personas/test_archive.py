"""Zip files from strangers."""

from __future__ import annotations

import struct
import zipfile
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from personas.archive import Archive, has_archive
from personas.limits import Findings, ImportLimits, Inflater
from personas.persona import CardError
from tests.personas import makers


def read(raw: bytes, limits: ImportLimits | None = None) -> tuple[Archive, Findings]:
    limits, findings = limits or ImportLimits(), Findings()
    return Archive(raw, limits, Inflater(limits), findings), findings


def read_all(raw: bytes, limits: ImportLimits | None = None) -> dict[str, bytes]:
    archive, _ = read(raw, limits)
    return {path: archive.read(path) for path in archive.paths}


def refused(raw: bytes, limits: ImportLimits | None = None) -> str:
    with pytest.raises(CardError) as caught:
        read_all(raw, limits)
    return caught.value.code


def patched(raw: bytes, offset: int, value: bytes, mark: bytes = b"PK\1\2") -> bytes:
    """The zip with some bytes of its first directory entry replaced."""
    at = raw.index(mark) + offset
    return raw[:at] + value + raw[at + len(value) :]


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("prefix", [b"", b"MZ something"])
def test_members(method: int, prefix: bytes) -> None:
    """Stored and deflated members are read, behind a prefix too; folders are no members."""
    raw = makers.archive({"a.txt": b"a" * 99, "b/": b"", "b/ü": b""}, prefix=prefix, method=method)
    archive, findings = read(raw)
    assert archive.paths == ("a.txt", "b/ü")
    assert (archive.read("a.txt"), archive.read("b/ü")) == (b"a" * 99, b"")
    assert archive.prefix == prefix
    assert findings.found == []
    with pytest.raises(KeyError):
        archive.read("b/")


def test_prefix_without_moved_offsets() -> None:
    """A zip that was only put behind a picture is read where it is."""
    archive, _ = read(b"picture" + makers.archive({"a": b"1"}))
    assert (archive.prefix, archive.read("a")) == (b"picture", b"1")


@pytest.mark.parametrize(
    "path",
    ["../a", "a/../b", "/a", "C:/a", "c:a", "a//b", "./a", "..\\a", "\\a", "a\0b", "", "x" * 600],
)
def test_slips(path: str) -> None:
    """A path that leaves the archive, or is none, refuses all of it."""
    assert refused(makers.archive({path: b"x"})) == "zip_slip"


def test_duplicates() -> None:
    """A path that is there twice refuses the archive; one in another case is a finding."""
    raw = makers.archive({"a.png": b"1", "b.png": b"2"})
    assert refused(raw.replace(b"b.png", b"a.png")) == "zip_duplicate"
    _, findings = read(raw.replace(b"b.png", b"A.png"))
    assert [finding.code for finding in findings.found] == ["zip_case_clash"]


def test_encrypted_and_links() -> None:
    """Encrypted members and links are refused."""
    raw = makers.archive({"a": b"x"})
    assert refused(patched(raw, 8, b"\1\0")) == "zip_encrypted"
    link = patched(patched(raw, 5, b"\3"), 38, struct.pack("<L", 0o120777 << 16))
    assert refused(link) == "zip_link"


@pytest.mark.parametrize(
    ("offset", "value"),
    [
        (10, b"\x0c\0"),  # bzip2
        (42, b"\xff\xff\0\0"),  # the member's place
        (0, b"XX"),
        (28, b"\xff\xff"),  # the name's length
        (20, b"\xff\xff\0\0"),  # the packed size
    ],
)
def test_broken_directory(offset: int, value: bytes) -> None:
    """A directory that says what is not so is refused."""
    assert refused(patched(makers.archive({"a": b"x" * 50}), offset, value)) in {
        "bad_zip",
        "zip_slip",
    }


@pytest.mark.parametrize(
    ("offset", "value"),
    [(4, b"\1\0"), (8, b"\2\0"), (8, b"\xff\xff\xff\xff"), (12, b"\xff" * 4), (16, b"\xff" * 4)],
)
def test_broken_end(offset: int, value: bytes) -> None:
    """An end record that does not fit, or stands for parts or Zip64, is refused."""
    assert refused(patched(makers.archive({"a": b"x"}), offset, value, b"PK\5\6")) in {
        "bad_zip",
        "zip_too_many",
    }


def test_lies_about_size() -> None:
    """A member that inflates to more than it claims is a bomb, to less is read and checked."""
    raw = makers.archive({"a": b"x" * 1000})
    assert refused(patched(raw, 24, struct.pack("<L", 10))) == "inflate_bomb"
    archive, findings = read(patched(raw, 16, b"\0\0\0\0"))
    assert archive.read("a") == b"x" * 1000
    assert [finding.code for finding in findings.found] == ["bad_crc"]


def test_limits() -> None:
    """The number of members, the size of one, of all, and the ratio have their limits."""
    raw = makers.archive({"a": bytes(5000), "b": bytes(5000)})
    assert refused(raw, ImportLimits(zip_entries=1)) == "zip_too_many"
    assert refused(raw, ImportLimits(zip_entry_bytes=4999)) == "inflate_bomb"
    assert refused(raw, ImportLimits(inflated_bytes=9999)) == "inflate_bomb"
    assert refused(raw, ImportLimits(ratio_floor=100, ratio=20)) == "inflate_bomb"
    assert read(raw, ImportLimits(inflated_bytes=10_000))[0].read("b") == bytes(5000)


def test_one_budget() -> None:
    """Members that share their bytes still count each time they are read."""
    archive, _ = read(makers.archive({"a": bytes(5000)}), ImportLimits(inflated_bytes=9000))
    archive.read("a")
    with pytest.raises(CardError):
        archive.read("a")


def test_has_archive() -> None:
    """Only a whole end record makes a file an archive."""
    assert has_archive(makers.archive({"a": b""}))
    assert not has_archive(b"PK\5\6")
    assert not has_archive(makers.png())


@given(st.binary(max_size=80), st.integers(0, 300), st.binary(max_size=8))
def test_noise(start: bytes, at: int, put: bytes) -> None:
    """Any bytes in any place are read or refused by name."""
    raw = makers.archive({"card.json": b"{}", "b": b"x" * 40}, prefix=start)
    with suppress(CardError):
        read_all(raw[:at] + put + raw[at + len(put) :])


@given(st.dictionaries(st.from_regex(r"[a-z]{1,5}(/[a-z]{1,5})?", fullmatch=True), st.binary()))
def test_any_files(files: dict[str, bytes]) -> None:
    """What `zipfile` writes is what is read."""
    assert read_all(makers.archive(files)) == files
