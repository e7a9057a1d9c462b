"""What can go wrong in the gateway.

GatewayError            root of the room; `message` is one line for people
  StartError            the server cannot start (port, data folder, backend): exit code 2
    ConfigError         a knob is unknown or has a wrong value
    HistoryError        the database is damaged, locked, unwritable or failing
  Refused               a request is refused; becomes an `error` frame
    ProtocolError       the frame itself is wrong
      UnreadableFrame   not even JSON or msgpack: the socket closes with 4001
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from personas.persona import JsonValue

__all__ = [
    "ConfigError",
    "ErrorCode",
    "GatewayError",
    "HistoryError",
    "HistoryFault",
    "ProtocolError",
    "Refused",
    "StartError",
    "UnreadableFrame",
]


class ErrorCode(StrEnum):
    """The gateway's own codes in `Error.code`; `BackendErrorCode` has the others."""

    BAD_FRAME = "bad_frame"
    UNKNOWN_TYPE = "unknown_type"
    BAD_FIELD = "bad_field"
    UNKNOWN_PERSONA = "unknown_persona"
    UNKNOWN_CHAT = "unknown_chat"
    UNKNOWN_TURN = "unknown_turn"
    UNKNOWN_BACKEND = "unknown_backend"
    EMPTY_TEXT = "empty_text"
    TEXT_TOO_LONG = "text_too_long"
    TURN_IN_PROGRESS = "turn_in_progress"
    TURN_OVER = "turn_over"
    CHAT_BEGUN = "chat_begun"
    PROMPT_TOO_LONG = "prompt_too_long"
    STORAGE_FAILED = "storage_failed"
    RATE_LIMITED = "rate_limited"
    UNAVAILABLE = "unavailable"
    INTERNAL = "internal"


class GatewayError(Exception):
    """Root of this room's errors; `message` is one line for people."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class StartError(GatewayError):
    """The server cannot start; the command prints `message` and exits with 2."""


class ConfigError(StartError):
    """`key` is the knob as `section.key`; `nearest` the closest one there is, if any is close."""

    def __init__(self, message: str, *, key: str = "", nearest: str | None = None) -> None:
        hint = f"; did you mean {nearest!r}?" if nearest else ""
        super().__init__(message + hint)
        self.key = key
        self.nearest = nearest


class HistoryFault(StrEnum):
    """What is wrong with the database."""

    DAMAGED = "damaged"
    LOCKED = "locked"
    UNWRITABLE = "unwritable"
    NEWER = "newer"
    FAILED = "failed"


class HistoryError(StartError):
    """The conversations cannot be read or written; nothing was changed."""

    def __init__(self, fault: HistoryFault, message: str) -> None:
        super().__init__(message)
        self.fault = fault


class Refused(GatewayError):
    """A request that is refused, with the fields of the wire's `Error`.

    `retry_after` is in seconds. `re` is the request it answers, where that is known.
    """

    def __init__(
        self,
        code: ErrorCode,
        message: str,
        *,
        retryable: bool = False,
        retry_after: float | None = None,
        detail: Mapping[str, JsonValue] | None = None,
        re: str | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.retryable = retryable
        self.retry_after = retry_after
        self.detail = dict(detail or {})
        self.re = re


class ProtocolError(Refused):
    """A frame that is not of this protocol. `field` is a path such as `d.text`, or empty."""

    def __init__(self, code: ErrorCode, message: str, field: str = "") -> None:
        super().__init__(code, message, detail={"field": field} if field else None)
        self.field = field


class UnreadableFrame(ProtocolError):
    """Bytes that are neither JSON nor msgpack; nothing after them can be trusted."""

    def __init__(self, message: str) -> None:
        super().__init__(ErrorCode.BAD_FRAME, message)
