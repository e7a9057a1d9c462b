"""The codec reads what it wrote and says where anything else went wrong."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from backends.api import Message, Role
from backends.local.codec import CodecError, plain, read


@dataclass(frozen=True, slots=True)
class Everything:
    """One field of each kind that the wire uses."""

    path: Path
    message: Message | None
    pairs: tuple[tuple[str, int | float | str], ...]
    share: float
    raw: bytes


VALUE = Everything(
    Path("a/b"), Message(Role.USER, "hi"), (("a", 1), ("b", 1.0), ("c", "x")), 0.5, b"\x00"
)


def changed(**fields: object) -> dict[str, object]:
    raw = plain(VALUE)
    assert isinstance(raw, dict)
    return raw | fields


def test_round_trip() -> None:
    """Every kind of field comes back equal and of the same type."""
    again = read(Everything, plain(VALUE))
    assert again == VALUE
    assert [type(n) for _, n in again.pairs] == [int, float, str]
    assert read(Everything, changed(message=None)).message is None


def test_int_for_float() -> None:
    """A whole number is fine where a float is wanted, and becomes one."""
    assert type(read(Everything, changed(share=1)).share) is float


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"path": 3}, "Everything.path: int in place of Path"),
        ({"share": "x"}, "Everything.share: str in place of float"),
        ({"share": True}, "Everything.share: bool in place of float"),
        ({"pairs": "x"}, "Everything.pairs: str in place of a list"),
        ({"pairs": [["a"]]}, r"Everything.pairs\[0\]: 1 items in place of 2"),
        ({"pairs": [["a", None]]}, r"pairs\[0\]\[1\]: NoneType fits none"),
        ({"message": {"type": "Turn"}}, "Everything.message: unknown type 'Turn'"),
        ({"message": 1}, "Everything.message: int fits none"),
        ({"message": {"type": "Message", "role": "god", "text": "", "name": None}}, "'god' is not"),
        ({"extra": 1}, "unknown key 'extra'"),
        ({"type": None}, "unknown type 'None'"),
    ],
)
def test_refused(fields: dict[str, object], problem: str) -> None:
    """Anything else is refused with its place."""
    with pytest.raises(CodecError, match=problem):
        read(Everything, changed(**fields))


def test_not_a_map() -> None:
    """A dataclass is a map and nothing else."""
    with pytest.raises(CodecError, match="list in place of a map"):
        read(Everything, [])


def test_cannot_be_sent() -> None:
    """A value of a foreign type is refused where it is written."""
    with pytest.raises(CodecError, match="set: cannot be sent"):
        plain({1})
