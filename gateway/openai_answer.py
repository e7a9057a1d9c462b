"""What clients of OpenAI's chat completions are sent: replies, chunks and errors. Pure.

Source: the OpenAI API reference, "Chat completions" and "Errors".
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from backends.api import FinishReason
from backends.errors import BackendErrorCode
from gateway.errors import ErrorCode
from gateway.failures import describe
from gateway.openai_schema import RequestError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from backends.api import Finished, Usage
    from personas.persona import JsonValue

__all__ = ["COMMENT", "Answer", "Failure", "event", "failure_of"]

COMMENT = b": the prompt is being read\n\n"
"""Keeps a connection busy; clients skip it."""
DONE = b"data: [DONE]\n\n"
"""The end of a stream that is whole; one that failed has none."""

FINISH_REASONS = {FinishReason.COMPLETE: "stop", FinishReason.LENGTH: "length"}

REQUEST_STATUS: Mapping[str | None, int] = {
    "body_too_large": 413,
    "model_not_found": 404,
    "origin_refused": 403,
}
"""By the code of a `RequestError`; every other one is a 400."""
STATUS: Mapping[str, int] = {
    BackendErrorCode.BAD_REQUEST: 400,
    BackendErrorCode.CONTEXT_OVERFLOW: 400,
    ErrorCode.PROMPT_TOO_LONG: 400,
    BackendErrorCode.OVERLOADED: 429,
    BackendErrorCode.RATE_LIMITED: 429,
    BackendErrorCode.INTERNAL: 500,
}
"""By the code of the wire's `Error`; every other one is a 503."""
SPELLED: Mapping[str, str] = {
    BackendErrorCode.CONTEXT_OVERFLOW: "context_length_exceeded",
    ErrorCode.PROMPT_TOO_LONG: "context_length_exceeded",
    BackendErrorCode.RATE_LIMITED: "rate_limit_exceeded",
}
"""Codes that clients know by another name."""
TYPES = {403: "permission_error", 429: "rate_limit_error", 500: "server_error", 503: "server_error"}


@dataclass(frozen=True, slots=True)
class Failure:
    """An error in OpenAI's shape. `retry_after` is in seconds."""

    status: int
    message: str
    code: str
    param: str | None = None
    retryable: bool = False
    retry_after: float | None = None

    def body(self) -> dict[str, JsonValue]:
        """The body of a refusal, and the chunk that ends a stream which had begun."""
        error: dict[str, JsonValue] = {
            "message": self.message,
            "type": TYPES.get(self.status, "invalid_request_error"),
            "param": self.param,
            "code": self.code,
        }
        return {"error": error}

    def headers(self) -> dict[str, str]:
        """Whether and when to come back; official clients retry by status unless they are told."""
        again = self.retryable or self.status == 429
        headers = {"x-should-retry": "true" if again else "false"}
        if self.retry_after is not None or self.status == 429:
            headers["Retry-After"] = str(max(1, math.ceil(self.retry_after or 0)))
        return headers


@dataclass(frozen=True, slots=True)
class Answer:
    """One reply's name; makes everything that is sent of it."""

    id: str
    created: int
    model: str
    include_usage: bool = False

    def whole(self, text: str, finished: Finished) -> dict[str, JsonValue]:
        """The body of an answer that is not streamed."""
        message: dict[str, JsonValue] = {"role": "assistant", "content": text, "refusal": None}
        choice: dict[str, JsonValue] = {
            "index": 0,
            "message": message,
            "logprobs": None,
            "finish_reason": FINISH_REASONS[finished.reason],
        }
        head = self._head("chat.completion", [choice])
        return {**head, "usage": _usage(finished.usage)}

    def opening(self) -> bytes:
        """The first chunk of a stream."""
        return self._chunk({"role": "assistant", "content": ""})

    def text(self, text: str) -> bytes:
        """More of the reply."""
        return self._chunk({"content": text})

    def ending(self, finished: Finished) -> Iterator[bytes]:
        """What follows the last text."""
        yield self._chunk({}, FINISH_REASONS[finished.reason])
        if self.include_usage:
            head = self._head("chat.completion.chunk", [])
            yield event({**head, "usage": _usage(finished.usage)})
        yield DONE

    def _chunk(self, delta: dict[str, JsonValue], reason: str | None = None) -> bytes:
        choice: JsonValue = {
            "index": 0,
            "delta": delta,
            "logprobs": None,
            "finish_reason": reason,
        }
        chunk = self._head("chat.completion.chunk", [choice])
        return event({**chunk, "usage": None} if self.include_usage else chunk)

    def _head(self, kind: str, choices: list[JsonValue]) -> dict[str, JsonValue]:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "choices": choices,
        }


def event(body: dict[str, JsonValue]) -> bytes:
    """The body as one server-sent event."""
    return b"data: " + json.dumps(body, separators=(",", ":")).encode() + b"\n\n"


def failure_of(error: BaseException) -> Failure:
    """Any failure as clients are told. What is not known is a defect: a 500, and logged."""
    if isinstance(error, RequestError):
        return Failure(REQUEST_STATUS.get(error.code, 400), error.message, error.code, error.param)
    said = describe(error)
    status = STATUS.get(said.code, 503)
    after = said.retry_after_ms
    return Failure(
        status,
        said.message,
        SPELLED.get(said.code, said.code),
        "messages" if status == 400 else None,
        said.retryable,
        None if after is None else after / 1000,
    )


def _usage(usage: Usage) -> dict[str, JsonValue]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }
