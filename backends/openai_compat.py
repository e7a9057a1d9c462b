"""Any server that speaks OpenAI's chat completions, as a backend.

Source: the OpenAI API reference, "Chat completions", streaming. Servers differ in what they add;
`OpenAICompatSettings.extras` names the sampling fields beyond OpenAI's that a server takes.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import re
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
from backends.stateless import Stateless
from backends.transport import Transport, parse, printable

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from backends.api import Sampling, Turn, TurnEvent

__all__ = ["OpenAICompatBackend", "OpenAICompatSettings"]

log = structlog.get_logger()

NEUTRAL = {"top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
"""Sampling fields beyond OpenAI's, with the value that switches them off."""
LOOPBACK = ("localhost", "127.0.0.1", "::1")
MODELS_SECONDS = 30.0
"""Longest wait for the list of models, however long a reply may take."""


@dataclass(frozen=True, slots=True)
class OpenAICompatSettings:
    """One server and one model of it.

    `base_url` ends where `/chat/completions` begins. `key_env` names the environment variable that
    holds the key, so that the key itself is in no file. `context` is what the model takes, in
    tokens. `extras` are the fields of `NEUTRAL` that the server understands; others are left out,
    with one warning, when a turn sets them. `first_s` bounds the wait for the first words,
    `idle_s` every later one, in seconds. Raises `ValueError` naming the field, never its secrets.
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
        if not re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,63}", self.name):
            raise ValueError(f"name must be lower-case letters, digits, - or _: {self.name!r}")
        _check_url(self.base_url)
        if not self.model:
            raise ValueError("model must not be empty")
        if self.key_env and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", self.key_env):
            # Not shown: people paste the key itself here.
            raise ValueError("key_env must be the name of an environment variable")
        if self.context < 64:
            raise ValueError(f"context is too small: {self.context}")
        unknown = sorted(set(self.extras) - set(NEUTRAL))
        if unknown:
            raise ValueError(f"extras may hold {', '.join(NEUTRAL)}; not {', '.join(unknown)}")
        for field in ("first_s", "idle_s"):
            if not 0 < getattr(self, field) <= 3600:
                raise ValueError(f"{field} must be above 0 and at most 3600 seconds")


class OpenAICompatBackend(Stateless):
    """Implements `backends.api.Backend`. Token counts before a turn are estimates."""

    def __init__(self, settings: OpenAICompatSettings) -> None:
        self.name = settings.name
        self._settings = settings
        self._key = os.environ.get(settings.key_env, "").strip() if settings.key_env else ""
        sendable = self._key.isascii() and self._key.isprintable()
        headers = {"Authorization": f"Bearer {self._key}"} if self._key and sendable else {}
        self._key_usable = bool(headers) or not settings.key_env
        self._http = Transport(settings.base_url, headers)
        self._state = BackendState.STARTING
        self._warned: set[str] = set()

    async def start(self) -> Capabilities:
        """Asks the server for its models, so that a wrong address or key shows before a turn."""
        self._refuse_when_closed()
        if not self._key_usable:
            raise BackendError(
                BackendErrorCode.AUTH,
                f"the environment variable {self._settings.key_env} is empty or holds no key",
            )
        url = urlsplit(self._settings.base_url)
        if self._key and url.scheme == "http" and url.hostname not in LOOPBACK:
            self._warn_once("key_sent_unencrypted", host=url.hostname)
        listed = await self._http.get_json("/models", min(self._settings.first_s, MODELS_SECONDS))
        ids = _model_ids(listed)
        if ids and self._settings.model not in ids:
            raise BackendError(
                BackendErrorCode.BAD_REQUEST,
                f"the server has no model {self._settings.model!r}; "
                f"it has {printable(', '.join(ids[:5]))}",
            )
        self._refuse_when_closed()
        self._state = BackendState.READY
        return Capabilities(self._settings.model, self._settings.context, exact_count=False)

    def status(self) -> BackendStatus:
        return BackendStatus(self._state, f"{self._settings.model}, on another server")

    async def stream(self, turn: Turn) -> AsyncGenerator[TurnEvent, None]:
        self._refuse_when_closed()
        now = asyncio.get_running_loop().time
        began = now()
        first: float | None = None
        deadline = began + self._settings.first_s
        usage: Usage | None = None
        reason: FinishReason | None = None
        ended = False
        spoken = 0
        events = self._http.post_events("/chat/completions", self._body(turn))
        async with contextlib.aclosing(events):
            try:
                while (event := await self._http.next_event(events, deadline)) is not None:
                    if event.data.strip() == "[DONE]":
                        ended = True
                        break
                    chunk = self._chunk(event.data)
                    usage = _usage(chunk) or usage
                    parts, said_reason = _delta(chunk)
                    reason = said_reason or reason
                    if not parts and reason is None:
                        continue  # no progress: neither a role nor a comment moves the deadline
                    first = first or now()
                    spoken += len(parts)
                    for part in parts:
                        yield part
                    # After the yield, so that a slow reader's time is not held against the server.
                    deadline = now() + self._settings.idle_s
            except BackendError as error:
                if error.code is BackendErrorCode.CONTEXT_OVERFLOW:
                    prompt = await self._prompt_tokens(turn)
                    error.detail.update(prompt_tokens=prompt, context=self._settings.context)
                raise
        self._refuse_when_closed()
        if reason is None or not ended:
            raise BackendError(
                BackendErrorCode.CUT,
                "the stream ended without " + ("[DONE]" if reason else "a finish reason"),
                retryable=True,
            )
        if usage is None:
            self._warn_once("usage_estimated")
            usage = Usage(prompt_tokens=await self._prompt_tokens(turn), completion_tokens=spoken)
        last = now()
        first = first or last
        timings = Timings(ttft_ms=(first - began) * 1e3, decode_ms=(last - first) * 1e3)
        yield Finished(reason, usage, timings)

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
        for name in sorted(wanted.keys() - set(self._settings.extras)):
            self._warn_once("sampling_field_left_out", field=name)
        return {name: value for name, value in wanted.items() if name in self._settings.extras}

    async def _prompt_tokens(self, turn: Turn) -> int:
        return sum(await self.count([message.text for message in turn.messages]))

    def _chunk(self, data: str) -> dict[str, object]:
        """One chunk of the stream. Raises the `BackendError` that an error in it means."""
        chunk = parse(data)
        if not isinstance(chunk, dict):
            raise BackendError(BackendErrorCode.CUT, "a chunk of the stream is no object")
        failed = chunk.get("error")
        if failed:
            code = failed.get("code") if isinstance(failed, dict) else None
            status = code if isinstance(code, int) and 400 <= code < 600 else 500
            raise self._http.failure(status, chunk)
        return chunk

    def _warn_once(self, event: str, **fields: object) -> None:
        key = event + str(fields)
        if key not in self._warned:
            self._warned.add(key)
            log.warning(event, backend=self.name, **fields)

    def _refuse_when_closed(self) -> None:
        if self._state is BackendState.DOWN:
            raise BackendError(BackendErrorCode.UNAVAILABLE, "the backend is closed")


def _check_url(url: str) -> None:
    """Raises `ValueError`, which does not show the url: it may hold what is secret."""
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable or not url.isprintable() or set(url) & set(" \\?#"):
        raise ValueError("url must be http(s)://host/path, with nothing after the path")
    if "@" in parts.netloc:
        raise ValueError("url must not hold credentials; name them in key_env")


def _model_ids(listed: object) -> list[str]:
    """The ids of a models list; empty when the server lists none in a known shape."""
    data = listed.get("data") if isinstance(listed, dict) else None
    if not isinstance(data, list):
        return []
    return [str(entry["id"]) for entry in data if isinstance(entry, dict) and "id" in entry]


def _delta(chunk: dict[str, object]) -> tuple[list[TextDelta | ThoughtDelta], FinishReason | None]:
    """What the first choice says, reasoning first, and why it ended."""
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
    parts: list[TextDelta | ThoughtDelta] = []
    if thought:
        parts.append(ThoughtDelta(thought))
    if text:
        parts.append(TextDelta(text))
    return parts, _reason(choice.get("finish_reason"))


def _reason(said: object) -> FinishReason | None:
    """What a finish reason means. Raises `BackendError` for one that no reply of ours ends with."""
    if not said:
        return None
    if said == "stop":
        return FinishReason.COMPLETE
    if said == "length":
        return FinishReason.LENGTH
    if said == "content_filter":
        raise BackendError(
            BackendErrorCode.BAD_REQUEST, "the server's content filter ended the reply"
        )
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
    """A count that a server gave; 0 when it is none, or larger than any database takes."""
    value = counts.get(name)
    return value if isinstance(value, int) and 0 <= value < 2**31 else 0
