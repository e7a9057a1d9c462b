"""Frozen dataclasses to and from plain values, strictly, by their type hints. Pure.

A dataclass becomes a map of its fields; where a field may be one of several dataclasses, the map
also has `type`, the class name. Reading refuses an unknown key, a missing one and a value of
another type: nothing is ignored and nothing is guessed.
"""

from __future__ import annotations

import types
import typing
from dataclasses import fields, is_dataclass
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin

__all__ = ["CodecError", "plain", "read"]

T = TypeVar("T")

TAG = "type"
SCALARS = (bool, int, float, str, bytes, type(None))


class CodecError(ValueError):
    """A value is not what the type says; `path` is where, as in `turn.messages[2].role`."""

    def __init__(self, path: str, problem: str) -> None:
        super().__init__(path, problem)
        self.path = path
        self.problem = problem

    def __str__(self) -> str:
        return f"{self.path}: {self.problem}"


def plain(value: object) -> object:
    """A value of dataclasses, tuples, enums, paths and scalars as maps, lists and scalars."""
    if isinstance(value, StrEnum):
        return value.value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, SCALARS):
        return value
    if isinstance(value, tuple):
        return [plain(item) for item in value]
    if is_dataclass(value) and not isinstance(value, type):
        body: dict[str, object] = {TAG: type(value).__name__}
        body.update((f.name, plain(getattr(value, f.name))) for f in fields(value))
        return body
    raise CodecError(type(value).__name__, "cannot be sent")


def read(kind: type[T], raw: object, path: str = "") -> T:
    """The value of type `kind` (a dataclass) that `plain` made. Raises `CodecError`."""
    value = _read(kind, raw, path or kind.__name__)
    assert isinstance(value, kind)
    return value


def read_one_of(kinds: tuple[type[Any], ...], raw: object, path: str) -> object:
    """The value of whichever dataclass `raw` names. Raises `CodecError`."""
    return _dataclass(kinds, raw, path)


@cache
def _hints(kind: type[Any]) -> dict[str, Any]:
    # The contracts import their annotations only for type checkers.
    return typing.get_type_hints(kind, localns={"Path": Path})


def _read(kind: Any, raw: object, path: str) -> object:
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        return _union(get_args(kind), raw, path)
    if origin is tuple:
        return _tuple(get_args(kind), raw, path)
    if is_dataclass(kind):
        assert isinstance(kind, type)
        return _dataclass((kind,), raw, path)
    return _scalar(kind, raw, path)


def _scalar(kind: Any, raw: object, path: str) -> object:
    if kind is float and type(raw) is int:
        return float(raw)
    if kind in SCALARS and type(raw) is kind:
        return raw
    if kind is Path and type(raw) is str:
        return Path(raw)
    if isinstance(kind, type) and issubclass(kind, StrEnum) and type(raw) is str:
        try:
            return kind(raw)
        except ValueError:
            raise CodecError(path, f"{raw[:40]!r} is not a {kind.__name__}") from None
    name = kind.__name__ if isinstance(kind, type) else str(kind)
    raise CodecError(path, f"{type(raw).__name__} in place of {name}")


def _union(kinds: tuple[type[Any], ...], raw: object, path: str) -> object:
    if raw is None and type(None) in kinds:
        return None
    if isinstance(raw, dict):
        shapes: tuple[type[Any], ...] = tuple(k for k in kinds if is_dataclass(k))
        return _dataclass(shapes, raw, path)
    rest = [k for k in kinds if k is not type(None) and not is_dataclass(k)]
    # An int is an int where the union has one, and a float only where it has none.
    exact = [k for k in rest if k is type(raw)]
    for kind in exact or rest:
        try:
            return _read(kind, raw, path)
        except CodecError:
            if len(rest) == 1:
                raise
    raise CodecError(path, f"{type(raw).__name__} fits none of the types")


def _tuple(args: tuple[Any, ...], raw: object, path: str) -> tuple[object, ...]:
    if not isinstance(raw, list | tuple):
        raise CodecError(path, f"{type(raw).__name__} in place of a list")
    if len(args) == 2 and args[1] is Ellipsis:
        return tuple(_read(args[0], item, f"{path}[{i}]") for i, item in enumerate(raw))
    if len(raw) != len(args):
        raise CodecError(path, f"{len(raw)} items in place of {len(args)}")
    return tuple(
        _read(kind, item, f"{path}[{i}]")
        for i, (kind, item) in enumerate(zip(args, raw, strict=True))
    )


def _dataclass(kinds: tuple[type[Any], ...], raw: object, path: str) -> object:
    if not isinstance(raw, dict):
        raise CodecError(path, f"{type(raw).__name__} in place of a map")
    tag = raw.get(TAG)
    kind = next((k for k in kinds if k.__name__ == tag), None)
    if kind is None:
        raise CodecError(path, f"unknown type {str(tag)[:40]!r}")
    hints = _hints(kind)  # type: ignore[arg-type]  # mypy doubts that classes hash
    unknown = [key for key in raw if key != TAG and key not in hints]
    if unknown:
        raise CodecError(path, f"unknown key {str(unknown[0])[:40]!r}")
    missing = [key for key in hints if key not in raw]
    if missing:
        raise CodecError(path, f"no {missing[0]!r}")
    values = {key: _read(hint, raw[key], f"{path}.{key}") for key, hint in hints.items()}
    try:
        return kind(**values)
    except ValueError as error:
        raise CodecError(path, str(error)) from error
