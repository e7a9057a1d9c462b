"""What can go wrong in a backend.

    BackendError            code, message, retryable, retry_after, detail

One class with fields: the caller decides by `code` and `retryable`, never by text. A stream
fails only by raising it (see the law in `backends.api.Backend`).
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["BackendError", "BackendErrorCode"]


class BackendErrorCode(StrEnum):
    """Whose fault it was and what it means for the caller."""

    BAD_REQUEST = "bad_request"
    """The turn itself cannot be served (caller's fault; retrying changes nothing)."""
    CONTEXT_OVERFLOW = "context_overflow"
    """The prompt does not fit the model's context; `detail` has `prompt_tokens` and `context`."""
    UNAVAILABLE = "unavailable"
    """The backend cannot take turns now: starting, stopped or unreachable."""
    OVERLOADED = "overloaded"
    """The backend's queue is full."""
    RATE_LIMITED = "rate_limited"
    """A provider's limit; `retry_after` says when."""
    AUTH = "auth"
    """The provider refused our credentials."""
    TIMEOUT = "timeout"
    """No answer within the turn's deadline."""
    CRASHED = "crashed"
    """The engine process died during the turn."""
    CUT = "cut"
    """The stream ended without the provider's finish marker."""
    INTERNAL = "internal"
    """A defect of ours; the log has the traceback."""


class BackendError(Exception):
    """A turn failed.

    `retryable` says whether the same turn may succeed later; `retry_after` is in seconds;
    `detail` holds numbers a person needs (token counts, limits), never message text.
    """

    def __init__(
        self,
        code: BackendErrorCode,
        message: str,
        *,
        retryable: bool = False,
        retry_after: float | None = None,
        detail: Mapping[str, int | float | str] | None = None,
    ) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message
        self.retryable = retryable
        self.retry_after = retry_after
        self.detail = dict(detail or {})

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"
