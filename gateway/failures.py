"""Every failure as the wire's `Error`: the one place where exceptions become codes for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from backends.errors import BackendError
from gateway.errors import ErrorCode, HistoryError, Refused
from gateway.protocol import Error, ErrorFrame
from personas.persona import PersonaNotFound, PromptTooLong

if TYPE_CHECKING:
    from collections.abc import Mapping

    from personas.persona import JsonValue

__all__ = ["answer", "describe"]

log = structlog.get_logger()


def describe(failure: BaseException) -> Error:
    """The failure for people. What is not known here is a defect: `internal`, and logged."""
    match failure:
        case BackendError() | Refused():
            after = failure.retry_after
            return Error(
                code=failure.code.value,
                message=failure.message,
                retryable=failure.retryable,
                retry_after_ms=None if after is None else round(after * 1000),
                detail=failure.detail,
            )
        case HistoryError():
            fault: dict[str, JsonValue] = {"fault": failure.fault.value}
            return _error(ErrorCode.STORAGE_FAILED, failure.message, fault, retryable=True)
        case PromptTooLong():
            sizes: dict[str, JsonValue] = {"needed": failure.needed, "room": failure.room}
            return _error(ErrorCode.PROMPT_TOO_LONG, failure.message, sizes)
        case PersonaNotFound():
            return _error(ErrorCode.UNKNOWN_PERSONA, failure.message, {"nearest": failure.nearest})
        case _:
            log.error("defect_found", exc_info=failure)
            return _error(ErrorCode.INTERNAL, "something broke on the server; see its log", {})


def answer(failure: BaseException, re: str | None = None, chat: str | None = None) -> ErrorFrame:
    """The frame that refuses a request."""
    error = describe(failure)
    return ErrorFrame(
        re=re,
        chat=chat,
        code=error.code,
        message=error.message,
        retryable=error.retryable,
        retry_after_ms=error.retry_after_ms,
        detail=error.detail,
    )


def _error(
    code: ErrorCode, message: str, detail: Mapping[str, JsonValue], *, retryable: bool = False
) -> Error:
    return Error(
        code=code.value, message=message, retryable=retryable, retry_after_ms=None, detail=detail
    )
