"""What OpenAI's clients are sent has the shapes that they read."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.api import Finished, FinishReason, Usage
from backends.errors import BackendError, BackendErrorCode
from gateway.errors import ErrorCode, Refused
from gateway.openai_answer import COMMENT, Answer, event, failure_of
from gateway.openai_schema import RequestError
from personas.persona import PromptTooLong

END = Finished(FinishReason.LENGTH, Usage(prompt_tokens=5, cached_tokens=3, completion_tokens=2))
COUNTS = {
    "prompt_tokens": 5,
    "completion_tokens": 2,
    "total_tokens": 7,
    "prompt_tokens_details": {"cached_tokens": 3},
}


def test_whole() -> None:
    """A whole reply has one choice, why it ended, and what it cost."""
    body = Answer("id", 7, "m").whole("Hello.", END)
    assert body == {
        "id": "id",
        "object": "chat.completion",
        "created": 7,
        "model": "m",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Hello.", "refusal": None},
                "logprobs": None,
                "finish_reason": "length",
            }
        ],
        "usage": COUNTS,
    }


@pytest.mark.parametrize("usage", [False, True])
def test_stream(usage: bool) -> None:
    """Role, text, reason, counts when they were asked for, then [DONE]."""
    answer = Answer("id", 7, "m", include_usage=usage)
    raw = b"".join([answer.opening(), COMMENT, answer.text("Hi"), *answer.ending(END)])
    lines = [block for block in raw.decode().split("\n\n") if block]
    assert lines.pop() == "data: [DONE]"
    chunks = [json.loads(line[6:]) for line in lines if not line.startswith(":")]
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    choices = [chunk["choices"][0] for chunk in chunks if chunk["choices"]]
    assert [c["delta"] for c in choices] == [
        {"role": "assistant", "content": ""},
        {"content": "Hi"},
        {},
    ]
    assert [c["finish_reason"] for c in choices] == [None, None, "length"]
    assert [chunk.get("usage", "none") for chunk in chunks] == (
        [None, None, None, COUNTS] if usage else ["none"] * 3
    )


@given(st.text())
def test_event_is_one_line(text: str) -> None:
    """No text can end an event early or begin another."""
    data = event({"text": text})
    assert data.endswith(b"\n\n")
    assert b"\n" not in data[:-2]
    assert b"\r" not in data
    assert json.loads(data[6:]) == {"text": text}


@pytest.mark.parametrize("code", list(BackendErrorCode))
def test_every_backend_error_has_a_status(code: BackendErrorCode) -> None:
    """Whatever a backend raises becomes an error of the documented statuses, never a 401."""
    failure = failure_of(BackendError(code, "it broke"))
    assert failure.status in (400, 429, 500, 503)
    assert failure.message == "it broke"
    own = BackendErrorCode.BAD_REQUEST, BackendErrorCode.CONTEXT_OVERFLOW
    assert (failure.status == 400) == (code in own)


@pytest.mark.parametrize(
    ("error", "status", "code", "param"),
    [
        (RequestError("no", param="n", code="unsupported_parameter"), 400, None, "n"),
        (RequestError("no", param="model", code="model_not_found"), 404, None, "model"),
        (RequestError("no", param=None, code="body_too_large"), 413, None, None),
        (RequestError("no", param=None, code="origin_refused"), 403, None, None),
        (PromptTooLong(9, 5), 400, "context_length_exceeded", "messages"),
        (Refused(ErrorCode.RATE_LIMITED, "no", retry_after=1), 429, "rate_limit_exceeded", None),
        (Refused(ErrorCode.UNAVAILABLE, "no", retryable=True), 503, "unavailable", None),
        (ZeroDivisionError(), 500, "internal", None),
    ],
)
def test_failures(error: Exception, status: int, code: str | None, param: str | None) -> None:
    """Each failure has its status, its code, and the field it is about."""
    failure = failure_of(error)
    assert (failure.status, failure.param) == (status, param)
    assert failure.code == (code or getattr(error, "code", ""))
    said = failure.body()["error"]
    assert isinstance(said, dict)
    assert set(said) == {"message", "type", "param", "code"}


def test_headers() -> None:
    """A limit always says when to come back, in whole seconds; others say whether."""
    limit = failure_of(BackendError(BackendErrorCode.RATE_LIMITED, "no", retry_after=1.2))
    assert limit.headers() == {"x-should-retry": "true", "Retry-After": "2"}
    full = failure_of(BackendError(BackendErrorCode.OVERLOADED, "no"))
    assert full.headers() == {"x-should-retry": "true", "Retry-After": "1"}
    down = failure_of(BackendError(BackendErrorCode.UNAVAILABLE, "no", retryable=True))
    assert down.headers() == {"x-should-retry": "true"}
    wrong = failure_of(RequestError("no", param="n"))
    assert wrong.headers() == {"x-should-retry": "false"}
