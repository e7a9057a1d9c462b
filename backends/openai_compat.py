"""Any server that speaks OpenAI's chat completions, as a backend.

Source: the OpenAI API reference, "Chat completions", streaming. Servers differ in what they add;
`OpenAICompatSettings.extras` names the sampling fields beyond OpenAI's that a server takes.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import structlog

from backends.api import (
    BackendState,
    BackendStatus,
    Capabilities,
    Finished,
    FinishReason,
    TextDelta,
    ThoughtDelta,
    Timings,
    Usage,
)
from backends.errors import BackendError, BackendErrorCode
from backends.transport import Transport

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from backends.api import Sampling, Turn, TurnEvent

__all__ = ["OpenAICompatBackend", "OpenAICompatSettings"]

log = structlog.get_logger()

NEUTRAL = {"top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
"""Sampling fields beyond OpenAI's, with the value that switches them off."""


@dataclass(frozen=True, slots=True)
class OpenAICompatSettings:
    """One server and one model of it.

    `base_url` ends where `/chat/completions` begins. `key_env` names the environment variable that
    holds the key, so that the key itself is in no file. `context` is what the model takes, in
    tokens. `extras` are the fields of `NEUTRAL` that the server understands; others are left out,
    with one warning, when a turn sets them. Raises `ValueError` naming the field.
    """

    name: str
    base_url: str
    model: str
    key_env: str = ""
    context: int = 8192
    extras: tuple[str, ...] = ()
    first_s: float = 120.0
    idle_s: float = 60.0

    def __post_init__(self) -> None:
        url = urlsplit(self.base_url)
        if url.scheme not in ("http", "https") or not url.hostname or url.query or url.fragment:
            raise ValueError(f"url must be http(s)://host/path: {self.base_url!r}")
        if url.username or url.password:
            raise ValueError("url must not hold credentials; name them in key_env")
        if not self.model:
            raise ValueError("model must not be empty")
        if self.context < 64:
            raise ValueError(f"context is too small: {self.context}")
        unknown = sorted(set(self.extras) - set(NEUTRAL))
        if unknown:
            raise ValueError(f"extras may hold {', '.join(NEUTRAL)}; not {', '.join(unknown)}")


class OpenAICompatBackend:
    """Implements `backends.api.Backend`. Token counts before a turn are estimates."""

    def __init__(self, settings: OpenAICompatSettings) -> None:
        self.name = settings.name
        self._settings = settings
        key = os.environ.get(settings.key_env, "") if settings.key_env else ""
        self._key_missing = bool(settings.key_env) and not key
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._http = Transport(
            settings.base_url, headers, first_s=settings.first_s, idle_s=settings.idle_s
        )
        self._state = BackendState.STARTING
        self._warned: set[str] = set()

    async def start(self) -> Capabilities:
        """Asks the server for its models, so that a wrong address or key shows before a turn."""
        self._refuse_when_closed()
        if self._key_missing:
            raise BackendError(
                BackendErrorCode.AUTH,
                f"the environment variable {self._settings.key_env} is empty",
            )
        listed = await self._http.get_json("/models")
        ids = _model_ids(listed)
        if ids and self._settings.model not in ids:
            raise BackendError(
                BackendErrorCode.BAD_REQUEST,
                f"the server has no model {self._settings.model!r}; it has {', '.join(ids[:5])}",
            )
        self._state = BackendState.READY
        return Capabilities(self._settings.model, self._settings.context, exact_count=False)

    def status(self) -> BackendStatus:
        return BackendStatus(self._state, f"{self._settings.model} at {self._settings.base_url}")

    async def stream(self, turn: Turn) -> AsyncGenerator[TurnEvent, None]:
        self._refuse_when_closed()
        began = time.perf_counter()
        first: float | None = None
        usage = Usage()
        reason: FinishReason | None = None
        ended = False
        events = self._http.post_events("/chat/completions", self._body(turn))
        async with contextlib.aclosing(events):
            async for event in events:
                if event.data.strip() == "[DONE]":
                    ended = True
                    break
                chunk = _chunk(event.data)
                usage = _usage(chunk) or usage
                text, thought, said_reason = _delta(chunk)
                if thought:
                    yield ThoughtDelta(thought)
                if text:
                    first = first or time.perf_counter()
                    yield TextDelta(text)
                reason = said_reason or reason
        if self._state is BackendState.DOWN:
            raise BackendError(BackendErrorCode.UNAVAILABLE, "the backend is closed")
        if reason is None or not ended:
            raise BackendError(
                BackendErrorCode.CUT,
                "the stream ended without " + ("[DONE]" if reason else "a finish reason"),
                retryable=True,
            )
        now = time.perf_counter()
        first = first or now
        yield Finished(
            reason,
            usage,
            Timings(ttft_ms=(first - began) * 1e3, decode_ms=(now - first) * 1e3),
        )

    async def count(self, texts: Sequence[str]) -> tuple[int, ...]:
        """Estimates: a token for every three bytes of UTF-8, and four for the message around it."""
        return tuple(math.ceil(len(text.encode(errors="replace")) / 3) + 4 for text in texts)

    async def aclose(self) -> None:
        self._state = BackendState.DOWN
        await self._http.aclose()

    def _body(self, turn: Turn) -> dict[str, object]:
        sampling = turn.sampling
        body: dict[str, object] = {
            "model": self._settings.model,
            "messages": [{"role": m.role.value, "content": m.text} for m in turn.messages],
            "stream": True,
            "stream_options": {"include_usage": True},
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": sampling.max_tokens,
        }
        if sampling.seed is not None:
            body["seed"] = sampling.seed
        if sampling.stop:
            body["stop"] = list(sampling.stop)
        return body | self._extras(sampling)

    def _extras(self, sampling: Sampling) -> dict[str, object]:
        wanted = {name: getattr(sampling, name) for name in NEUTRAL}
        wanted = {name: value for name, value in wanted.items() if value != NEUTRAL[name]}
        for name in sorted(wanted.keys() - set(self._settings.extras) - self._warned):
            self._warned.add(name)
            log.warning("sampling_field_left_out", backend=self.name, field=name)
        return {name: value for name, value in wanted.items() if name in self._settings.extras}

    def _refuse_when_closed(self) -> None:
        if self._state is BackendState.DOWN:
            raise BackendError(BackendErrorCode.UNAVAILABLE, "the backend is closed")


def _model_ids(listed: object) -> list[str]:
    """The ids of a models list; empty when the server lists none in a known shape."""
    data = listed.get("data") if isinstance(listed, dict) else None
    if not isinstance(data, list):
        return []
    return [str(entry["id"]) for entry in data if isinstance(entry, dict) and "id" in entry]


def _chunk(data: str) -> dict[str, object]:
    try:
        chunk: object = json.loads(data)
    except ValueError as error:
        raise BackendError(
            BackendErrorCode.CUT, "the stream has a chunk that is not JSON"
        ) from error
    if not isinstance(chunk, dict):
        raise BackendError(BackendErrorCode.CUT, "a chunk of the stream is no object")
    failed = chunk.get("error")
    if failed:
        said = failed.get("message", "") if isinstance(failed, dict) else failed
        raise BackendError(
            BackendErrorCode.UNAVAILABLE,
            f"the server failed during the reply: {str(said)[:300]}",
            retryable=True,
        )
    return chunk


def _delta(chunk: dict[str, object]) -> tuple[str, str, FinishReason | None]:
    """Text, reasoning text, and why it ended, of the first choice."""
    choices = chunk.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else {}
    if not isinstance(choice, dict):
        raise BackendError(BackendErrorCode.CUT, "the stream has a choice that is no object")
    delta = choice.get("delta") or {}
    if not isinstance(delta, dict):
        raise BackendError(BackendErrorCode.CUT, "the stream has a delta that is no object")
    text = delta.get("content") or ""
    thought = delta.get("reasoning_content") or delta.get("reasoning") or ""
    if not isinstance(text, str) or not isinstance(thought, str):
        raise BackendError(BackendErrorCode.CUT, "the stream has a delta that is no text")
    return text, thought, _reason(choice.get("finish_reason"))


def _reason(said: object) -> FinishReason | None:
    if said is None:
        return None
    if said == "stop":
        return FinishReason.COMPLETE
    if said == "length":
        return FinishReason.LENGTH
    raise BackendError(
        BackendErrorCode.BAD_REQUEST, f"the server ended the reply as {str(said)[:40]!r}"
    )


def _usage(chunk: dict[str, object]) -> Usage | None:
    counts = chunk.get("usage")
    if not isinstance(counts, dict):
        return None
    details = counts.get("prompt_tokens_details")
    cached = _count(details, "cached_tokens") if isinstance(details, dict) else 0
    prompt = _count(counts, "prompt_tokens")
    cached = min(cached, prompt)
    return Usage(
        prompt_tokens=prompt,
        cached_tokens=cached,
        completion_tokens=_count(counts, "completion_tokens"),
        cached_by_tier=(("provider", cached),) if cached else (),
    )


def _count(counts: dict[str, object], name: str) -> int:
    value = counts.get(name)
    return value if isinstance(value, int) and value >= 0 else 0
