"""Frozen dataclasses to plain objects to bytes, and back, strictly. Sans-I/O.

A frame class names its type in `T`. Its fields that are keys of the envelope travel there, the
others in `d`. Reading refuses every unknown, missing or wrong field by its path.
"""

from __future__ import annotations

import dataclasses
import json
import types
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, ClassVar, Union, cast, get_args, get_origin, get_type_hints

from gateway.errors import ErrorCode, ProtocolError, UnreadableFrame

if TYPE_CHECKING:
    from typing import NoReturn

    from personas.persona import JsonValue

__all__ = ["ENVELOPE", "Frame", "Subprotocol", "dump", "load", "pack", "unpack"]

ENVELOPE = ("id", "re", "chat", "turn", "epoch", "seq")
"""The envelope's keys beside `t` and `d`."""


class Subprotocol(StrEnum):
    """How objects become WebSocket messages."""

    JSON = "persona.v1.json"
    MSGPACK = "persona.v1.msgpack"


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """The base of every frame; `T` is its type on the wire."""

    T: ClassVar[str] = ""


@dataclass(frozen=True, slots=True)
class _Field:
    name: str
    hint: object
    required: bool


_known_fields: dict[type, tuple[_Field, ...]] = {}


def _fields(cls: type) -> tuple[_Field, ...]:
    """The fields of a dataclass with their types, worked out once a class."""
    if cls not in _known_fields:
        _known_fields[cls] = _inspect(cls)
    return _known_fields[cls]


def _inspect(cls: type) -> tuple[_Field, ...]:
    # JsonValue is for type checkers; here it means "any plain value".
    hints = get_type_hints(cls, localns={"JsonValue": object, "Mapping": Mapping})
    return tuple(
        _Field(
            f.name,
            hints[f.name],
            f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING,
        )
        for f in dataclasses.fields(cls)
    )


def dump(frame: Frame) -> dict[str, JsonValue]:
    """The frame as one object; envelope keys and optional fields that are None are left out."""
    out: dict[str, JsonValue] = {"t": frame.T}
    payload: dict[str, JsonValue] = {}
    for field in _fields(type(frame)):
        value = getattr(frame, field.name)
        if value is None and (not field.required or field.name in ENVELOPE):
            continue
        (out if field.name in ENVELOPE else payload)[field.name] = _plain(value)
    if payload:
        out["d"] = payload
    return out


def _plain(value: object) -> JsonValue:
    if isinstance(value, StrEnum):
        return value.value
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(v) for v in value]
    if dataclasses.is_dataclass(value):
        return {
            f.name: _plain(getattr(value, f.name))
            for f in _fields(type(value))
            if f.required or getattr(value, f.name) is not None
        }
    return cast("JsonValue", value)


def load(obj: JsonValue, known: Mapping[str, type[Frame]]) -> Frame:
    """One object as a frame of the `known` types.

    Raises `ProtocolError` (`bad_frame`, `unknown_type`, `bad_field`), with `re` where the object
    has a usable `id`.
    """
    if not isinstance(obj, dict):
        raise ProtocolError(ErrorCode.BAD_FRAME, "a frame is one object")
    try:
        return _load(obj, known)
    except ProtocolError as error:
        request = obj.get("id")
        if isinstance(request, str) and 1 <= len(request) <= 64 and _encodes(request):
            error.re = request
        raise


def _load(obj: dict[str, JsonValue], known: Mapping[str, type[Frame]]) -> Frame:
    kind = obj.get("t")
    if not isinstance(kind, str):
        raise ProtocolError(ErrorCode.BAD_FRAME, "a frame has its type in 't'")
    cls = known.get(kind)
    if cls is None:
        shown = kind[:64] if _encodes(kind) else "?"
        raise ProtocolError(ErrorCode.UNKNOWN_TYPE, f"no frame of type {shown!r}", "t")
    payload = obj.get("d", {})
    if not isinstance(payload, dict):
        _wrong("d", "an object")
    fields = _fields(cls)
    envelope = {"t", "d"} | {f.name for f in fields if f.name in ENVELOPE}
    _refuse_unknown(obj, envelope, "")
    _refuse_unknown(payload, {f.name for f in fields if f.name not in ENVELOPE}, "d.")
    values: dict[str, object] = {}
    for f in fields:
        place, prefix = (obj, "") if f.name in ENVELOPE else (payload, "d.")
        if f.name in place:
            values[f.name] = _read(place[f.name], f.hint, prefix + f.name)
        elif f.required:
            _missing(prefix + f.name)
    return cls(**values)


def _read(value: JsonValue, hint: object, where: str) -> object:
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        options = get_args(hint)
        if value is None and type(None) in options:
            return None
        [some] = [o for o in options if o is not type(None)]
        return _read(value, some, where)
    if origin is tuple:
        if not isinstance(value, list):
            _wrong(where, "a list")
        item = get_args(hint)[0]
        return tuple(_read(v, item, f"{where}[{i}]") for i, v in enumerate(value))
    if origin is Mapping:
        if not isinstance(value, dict):
            _wrong(where, "an object")
        item = get_args(hint)[1]
        return {k: _read(v, item, f"{where}.{k}") for k, v in value.items()}
    if hint is object:
        return value
    return _read_plain(value, cast("type", hint), where)


def _read_plain(value: JsonValue, hint: type, where: str) -> object:
    if issubclass(hint, StrEnum):
        if not isinstance(value, str) or value not in set(hint):
            _wrong(where, "one of " + ", ".join(hint))
        return hint(value)
    if hint is str:
        if not isinstance(value, str) or not _encodes(value):
            _wrong(where, "a string of whole characters")
        return value
    if hint is float:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            _wrong(where, "a number")
        return float(value)
    if hint is int:
        if isinstance(value, bool) or not isinstance(value, int) or not -(2**53) < value < 2**53:
            _wrong(where, "a whole number below 2**53")
        return value
    if hint is bool:
        if not isinstance(value, bool):
            _wrong(where, "true or false")
        return value
    if not isinstance(value, dict):
        _wrong(where, "an object")
    fields = _fields(hint)
    _refuse_unknown(value, {f.name for f in fields}, where + ".")
    values: dict[str, object] = {}
    for f in fields:
        if f.name in value:
            values[f.name] = _read(value[f.name], f.hint, f"{where}.{f.name}")
        elif f.required:
            _missing(f"{where}.{f.name}")
    return hint(**values)


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _refuse_unknown(obj: Mapping[str, JsonValue], known: set[str], prefix: str) -> None:
    for key in obj:
        if key not in known:
            path = prefix + (key[:64] if _encodes(key) else "?")
            raise ProtocolError(ErrorCode.BAD_FIELD, f"unknown field {path!r}", path)


def _wrong(where: str, wanted: str) -> NoReturn:
    raise ProtocolError(ErrorCode.BAD_FIELD, f"{where!r} must be {wanted}", where)


def _missing(where: str) -> NoReturn:
    raise ProtocolError(ErrorCode.BAD_FIELD, f"{where!r} is missing", where)


def pack(obj: Mapping[str, JsonValue], subprotocol: Subprotocol) -> str | bytes:
    """The object as one WebSocket message: text for JSON, binary for msgpack."""
    if subprotocol is Subprotocol.JSON:
        return json.dumps(obj, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    import msgpack

    return cast("bytes", msgpack.packb(obj))


def unpack(data: str | bytes, subprotocol: Subprotocol) -> JsonValue:
    """One WebSocket message as an object. Raises `UnreadableFrame`."""
    try:
        if subprotocol is Subprotocol.JSON:
            if isinstance(data, bytes):
                raise ValueError("a binary message")
            return cast("JsonValue", json.loads(data, parse_constant=_no_constant))
        import msgpack

        if isinstance(data, str):
            raise ValueError("a text message")
        # NOTE: the buffer's length bounds every declared length, so a lie cannot allocate.
        return cast("JsonValue", msgpack.unpackb(data, ext_hook=_no_ext))
    except (ValueError, TypeError, RecursionError, OverflowError) as error:
        format_name = "JSON" if subprotocol is Subprotocol.JSON else "msgpack"
        raise UnreadableFrame(f"the message is not {format_name}") from error
    except Exception as error:  # msgpack has its own roots (FormatError, StackError, ExtraData)
        raise UnreadableFrame("the message is not msgpack") from error


def _no_constant(name: str) -> NoReturn:
    raise ValueError(name)


def _no_ext(code: int, data: bytes) -> NoReturn:
    raise ValueError(f"extension type {code}")
