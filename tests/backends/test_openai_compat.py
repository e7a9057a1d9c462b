"""The chat-completions backend keeps the contract and tells the truth about every fault."""

from __future__ import annotations

import asyncio
import traceback
from typing import TYPE_CHECKING

import pytest
from structlog.testing import capture_logs

from backends.api import (
    Backend,
    BackendState,
    Finished,
    FinishReason,
    Sampling,
    TextDelta,
    ThoughtDelta,
)
from backends.errors import BackendError, BackendErrorCode
from backends.openai_compat import OpenAICompatBackend, OpenAICompatSettings
from backends.testing import BackendContract, speak, turn
from tests.backends.fake_provider import WORDS, FakeProvider

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

    from backends.api import TurnEvent

CANARY = "sk-canary-0123456789"


@pytest.fixture
async def provider() -> AsyncIterator[FakeProvider]:
    async with FakeProvider().running() as running:
        yield running


def backend_for(provider: FakeProvider, model: str, **more: object) -> OpenAICompatBackend:
    settings = {"first_s": 5.0, "idle_s": 5.0, **more}
    return OpenAICompatBackend(
        OpenAICompatSettings("far", provider.url, model, **settings)  # type: ignore[arg-type]
    )


async def collect(stream: AsyncGenerator[TurnEvent, None], into: list[TurnEvent]) -> None:
    """Keeps the events also of a stream that fails."""
    async for event in stream:
        into.append(event)  # noqa: PERF401 - a comprehension would lose them


class TestContract(BackendContract):
    @pytest.fixture
    async def backend(self, provider: FakeProvider) -> AsyncIterator[Backend]:
        made = backend_for(provider, "long")
        yield made
        await made.aclose()


async def test_speaks(provider: FakeProvider) -> None:
    """Text, reason and usage come through, cached tokens under the provider's name."""
    backend = backend_for(provider, "thinks")
    text, events = await speak(backend.stream(turn()))
    assert text == "".join(WORDS)
    assert events[0] == ThoughtDelta("Hm.")
    last = events[-1]
    assert isinstance(last, Finished)
    assert last.reason is FinishReason.COMPLETE
    assert last.usage.cached_by_tier == (("provider", 4),)
    assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (9, 5)
    assert last.timings.ttft_ms > 0
    await backend.aclose()


async def test_length_is_length(provider: FakeProvider) -> None:
    """A reply that the limit ended says so."""
    backend = backend_for(provider, "ok")
    _, events = await speak(backend.stream(turn(sampling=Sampling(max_tokens=2))))
    assert isinstance(events[-1], Finished)
    assert events[-1].reason is FinishReason.LENGTH
    await backend.aclose()


async def test_empty_finish_reason_is_none_yet(provider: FakeProvider) -> None:
    """Servers that write an empty finish reason while they speak are understood."""
    backend = backend_for(provider, "empty_reason")
    text, _ = await speak(backend.stream(turn()))
    assert text == "".join(WORDS)
    await backend.aclose()


async def test_missing_usage_is_estimated(provider: FakeProvider) -> None:
    """Without the server's counts there are estimates, said once; absurd counts are not kept."""
    backend = backend_for(provider, "no_usage")
    with capture_logs() as logs:
        for _ in range(2):
            _, events = await speak(backend.stream(turn()))
    last = events[-1]
    assert isinstance(last, Finished)
    assert last.usage.completion_tokens == len(WORDS)
    assert last.usage.prompt_tokens == sum(await backend.count([m.text for m in turn().messages]))
    assert [entry["event"] for entry in logs] == ["usage_estimated"]
    await backend.aclose()
    backend = backend_for(provider, "absurd_usage")
    _, events = await speak(backend.stream(turn()))
    assert isinstance(events[-1], Finished)
    assert (events[-1].usage.prompt_tokens, events[-1].usage.completion_tokens) == (0, 0)
    await backend.aclose()


BAD, CUT = BackendErrorCode.BAD_REQUEST, BackendErrorCode.CUT
TIMEOUT, AUTH = BackendErrorCode.TIMEOUT, BackendErrorCode.AUTH
UNAVAILABLE, LIMITED = BackendErrorCode.UNAVAILABLE, BackendErrorCode.RATE_LIMITED
OVERFLOW = BackendErrorCode.CONTEXT_OVERFLOW


@pytest.mark.parametrize(
    ("fault", "code", "retryable"),
    [
        ("cut", CUT, True),
        ("reset", CUT, True),
        ("no_reason", CUT, True),
        ("usage_only", CUT, True),
        ("no_done", CUT, True),
        ("empty", CUT, True),
        ("bad_chunk", CUT, False),
        ("deep_chunk", CUT, False),
        ("no_object", CUT, False),
        ("bad_choice", CUT, False),
        ("bad_delta", CUT, False),
        ("bad_text", CUT, False),
        ("huge", CUT, False),
        ("huge_error", CUT, False),
        ("endless", CUT, False),
        ("packed", CUT, False),
        ("wrong_type", CUT, False),
        ("in_band", UNAVAILABLE, True),
        ("in_band_text", UNAVAILABLE, True),
        ("in_band_429", LIMITED, True),
        ("in_band_context", OVERFLOW, False),
        ("content_filter", BAD, False),
        ("tool_calls", BAD, False),
        ("stall", TIMEOUT, True),
        ("stall_with_pings", TIMEOUT, True),
        ("slow_start", TIMEOUT, True),
        ("role_then_stall", TIMEOUT, True),
        ("pings_only", TIMEOUT, True),
        ("context", OVERFLOW, False),
        ("context_words", OVERFLOW, False),
        ("not_context", UNAVAILABLE, True),
        ("detail", BAD, False),
        ("list", BAD, False),
        ("204", BAD, False),
        ("302", BAD, False),
        ("400", BAD, False),
        ("401", AUTH, False),
        ("403", AUTH, False),
        ("404", BAD, False),
        ("408", TIMEOUT, True),
        ("413", OVERFLOW, False),
        ("422", BAD, False),
        ("429", LIMITED, True),
        ("500", UNAVAILABLE, True),
        ("503", UNAVAILABLE, True),
        ("504", TIMEOUT, True),
    ],
)
async def test_faults(
    provider: FakeProvider,
    monkeypatch: pytest.MonkeyPatch,
    fault: str,
    code: BackendErrorCode,
    retryable: bool,
) -> None:
    """Every fault is one BackendError with the true code, one call, nothing whole, no secret."""
    monkeypatch.setenv("FAR_KEY", CANARY)
    waits = {"first_s": 0.4, "idle_s": 0.3} if code is TIMEOUT else {}
    backend = backend_for(provider, fault, key_env="FAR_KEY", **waits)
    events: list[TurnEvent] = []
    with pytest.raises(BackendError) as caught, capture_logs() as logs:
        await collect(backend.stream(turn()), events)
    error = caught.value
    assert (error.code, error.retryable) == (code, retryable)
    assert not [e for e in events if isinstance(e, Finished)]
    assert error.message.isprintable()
    assert len(error.message) < 400
    shown = "".join(traceback.format_exception(error)) + str(error.detail) + str(logs)
    assert CANARY not in shown
    assert error.retry_after == (7 if fault in ("408", "429", "500", "503", "504") else None)
    if code is OVERFLOW:
        assert error.detail.keys() == {"prompt_tokens", "context"}
    await provider.quiet()
    assert (provider.calls, provider.live) == (1, 0)
    await backend.aclose()


@pytest.mark.parametrize(
    ("fault", "first_s", "idle_s"),
    [("role_then_stall", 0.2, 30), ("pings_only", 0.2, 30), ("stall_with_pings", 30, 0.2)],
)
async def test_the_first_words_have_their_own_time(
    provider: FakeProvider, fault: str, first_s: float, idle_s: float
) -> None:
    """Before the first words `first_s` counts, after them `idle_s`, whatever else is sent."""
    backend = backend_for(provider, fault, first_s=first_s, idle_s=idle_s)
    async with asyncio.timeout(5):
        with pytest.raises(BackendError, match="in time"):
            await speak(backend.stream(turn()))
    await backend.aclose()


async def test_a_slow_reader_is_not_the_servers_fault(provider: FakeProvider) -> None:
    """Time that the reader of the stream takes counts for no deadline."""
    backend = backend_for(provider, "ok", first_s=0.3, idle_s=0.2)
    text = ""
    async for event in backend.stream(turn()):
        if isinstance(event, TextDelta):
            text += event.text
            if text == WORDS[0]:
                await asyncio.sleep(0.4)
    assert text == "".join(WORDS)
    await backend.aclose()


async def test_nobody_there() -> None:
    """A server that does not listen is unavailable, in start and in a turn."""
    backend = OpenAICompatBackend(OpenAICompatSettings("far", "http://127.0.0.1:1/v1", "m"))
    with pytest.raises(BackendError, match="cannot reach the server") as caught:
        await backend.start()
    assert (caught.value.code, caught.value.retryable) == (UNAVAILABLE, True)
    assert backend.status().state is BackendState.STARTING
    with pytest.raises(BackendError, match="cannot reach the server"):
        await speak(backend.stream(turn()))
    await backend.aclose()
    with pytest.raises(BackendError, match="closed"):
        await backend.start()


async def test_closing_ends_the_generation(provider: FakeProvider) -> None:
    """Closing the stream stops the provider within a second, before and after the first words."""
    backend = backend_for(provider, "long")
    stream = backend.stream(turn(sampling=Sampling(max_tokens=2000)))
    assert isinstance(await anext(stream), TextDelta)
    assert provider.live == 1
    await stream.aclose()
    await provider.quiet()
    await backend.aclose()
    provider.asked.clear()
    backend = backend_for(provider, "slow_start")
    task = asyncio.create_task(speak(backend.stream(turn())))
    await asyncio.wait_for(provider.asked.wait(), 1)
    assert provider.live == 1
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await provider.quiet()
    await backend.aclose()


async def test_key_comes_from_the_environment(
    provider: FakeProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The key is read from the named variable, sent, shown nowhere; a useless one is refused."""
    monkeypatch.setenv("FAR_KEY", CANARY + "\n")
    backend = backend_for(provider, "ok", key_env="FAR_KEY")
    await backend.start()
    assert provider.authorization == f"Bearer {CANARY}"
    settings = OpenAICompatSettings("far", provider.url, "ok", key_env="FAR_KEY")
    assert "canary" not in repr(settings) + repr(backend) + str(backend.status())
    await backend.aclose()
    monkeypatch.setenv("FAR_KEY", "wrong-canary")
    backend = backend_for(provider, "ok", key_env="FAR_KEY")
    with pytest.raises(BackendError, match="401") as caught:
        await backend.start()
    assert caught.value.code is AUTH
    assert "canary" not in "".join(traceback.format_exception(caught.value))
    await backend.aclose()
    for useless in ("", "  ", "schl\u00fcssel", "two\nlines"):
        monkeypatch.setenv("FAR_KEY", useless)
        with pytest.raises(BackendError, match="FAR_KEY is empty or holds no key") as caught:
            await backend_for(provider, "ok", key_env="FAR_KEY").start()
        assert caught.value.code is AUTH


async def test_a_key_without_tls_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """A key that would cross a network in the clear is logged, without the key."""
    monkeypatch.setenv("FAR_KEY", CANARY)
    settings = OpenAICompatSettings("far", "http://127.0.0.2:1/v1", "m", key_env="FAR_KEY")
    backend = OpenAICompatBackend(settings)
    with capture_logs() as logs, pytest.raises(BackendError, match="cannot reach"):
        await backend.start()
    assert [entry["event"] for entry in logs] == ["key_sent_unencrypted"]
    assert CANARY not in str(logs)
    await backend.aclose()


async def test_what_is_sent(provider: FakeProvider) -> None:
    """Messages and sampling are sent; fields beyond OpenAI's only where the server takes them."""
    sampling = Sampling(temperature=0.5, top_k=5, min_p=0.1, seed=3, stop=("X",), max_tokens=9)
    backend = backend_for(provider, "ok", extras=("top_k",))
    with capture_logs() as logs:
        for _ in range(2):
            await speak(backend.stream(turn(sampling=sampling)))
    assert [(entry["event"], entry["field"]) for entry in logs] == [
        ("sampling_field_left_out", "min_p")
    ]
    assert provider.last == {
        "model": "ok",
        "messages": [{"role": m.role.value, "content": m.text} for m in turn().messages],
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0.5,
        "top_p": 0.95,
        "top_k": 5,
        "seed": 3,
        "stop": ["X"],
        "max_tokens": 9,
    }
    await backend.aclose()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", ""),
        ("name", "Far Away"),
        ("base_url", "ftp://canary/v1"),
        ("base_url", "http://me:canary@host/v1"),
        ("base_url", "http://good\\@canary/v1"),
        ("base_url", "http://host/v1?key=canary"),
        ("base_url", "http://host/v1#canary"),
        ("base_url", "http://host:99999/canary"),
        ("base_url", "http://host/canary\n"),
        ("base_url", "not a url"),
        ("model", ""),
        ("key_env", "sk-canary"),
        ("context", 1),
        ("extras", ("mirostat",)),
        ("first_s", 0.0),
        ("idle_s", float("nan")),
    ],
)
def test_settings_name_what_is_wrong(field: str, value: object) -> None:
    """Settings that cannot be are refused, naming the field and showing nothing secret."""
    good: dict[str, object] = {"name": "far", "base_url": "http://127.0.0.1/v1", "model": "m"}
    with pytest.raises(ValueError, match=field.removeprefix("base_")) as caught:
        OpenAICompatSettings(**good | {field: value})  # type: ignore[arg-type]
    assert "canary" not in str(caught.value)


async def test_models_are_checked(provider: FakeProvider) -> None:
    """start names the models there are when ours is not among them; odd lists are let pass."""
    provider.models = {"data": [{"id": "theirs"}, {"id": "oth\ners"}]}
    backend = backend_for(provider, "mine")
    with pytest.raises(BackendError, match="no model 'mine'; it has theirs, oth ers") as caught:
        await backend.start()
    assert caught.value.code is BAD
    odd: list[object] = [{"data": [{"id": "mine"}]}, {"data": [7]}, {"data": 7}, [], "what"]
    for provider.models in odd:
        assert (await backend.start()).exact_count is False
    await backend.aclose()
