"""The chat-completions backend keeps the contract and tells the truth about every fault."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from backends.api import Backend, Finished, FinishReason, Sampling, TextDelta, ThoughtDelta
from backends.errors import BackendError, BackendErrorCode
from backends.openai_compat import OpenAICompatBackend, OpenAICompatSettings
from backends.testing import BackendContract, speak, turn
from tests.backends.fake_provider import WORDS, FakeProvider

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@pytest.fixture
async def provider() -> AsyncIterator[FakeProvider]:
    async with FakeProvider().running() as running:
        yield running


def backend_for(provider: FakeProvider, model: str, **more: object) -> OpenAICompatBackend:
    settings = {"first_s": 0.5, "idle_s": 0.5, **more}
    return OpenAICompatBackend(
        OpenAICompatSettings("far", provider.url, model, **settings)  # type: ignore[arg-type]
    )


class TestContract(BackendContract):
    @pytest.fixture
    async def backend(self, provider: FakeProvider) -> AsyncIterator[Backend]:
        made = backend_for(provider, "long", first_s=5.0, idle_s=5.0)
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
    await backend.aclose()


async def test_length_is_length(provider: FakeProvider) -> None:
    """A reply that the limit ended says so."""
    backend = backend_for(provider, "ok")
    _, events = await speak(backend.stream(turn(sampling=Sampling(max_tokens=2))))
    assert isinstance(events[-1], Finished)
    assert events[-1].reason is FinishReason.LENGTH
    await backend.aclose()


@pytest.mark.parametrize(
    ("fault", "code", "retryable"),
    [
        ("cut", BackendErrorCode.CUT, True),
        ("reset", BackendErrorCode.CUT, True),
        ("no_reason", BackendErrorCode.CUT, True),
        ("no_done", BackendErrorCode.CUT, True),
        ("empty", BackendErrorCode.CUT, True),
        ("bad_chunk", BackendErrorCode.CUT, False),
        ("bad_shape", BackendErrorCode.CUT, False),
        ("huge", BackendErrorCode.CUT, False),
        ("wrong_type", BackendErrorCode.CUT, False),
        ("in_band", BackendErrorCode.UNAVAILABLE, True),
        ("filter", BackendErrorCode.BAD_REQUEST, False),
        ("stall", BackendErrorCode.TIMEOUT, True),
        ("slow_start", BackendErrorCode.TIMEOUT, True),
        ("context", BackendErrorCode.CONTEXT_OVERFLOW, False),
        ("400", BackendErrorCode.BAD_REQUEST, False),
        ("401", BackendErrorCode.AUTH, False),
        ("403", BackendErrorCode.AUTH, False),
        ("408", BackendErrorCode.TIMEOUT, True),
        ("413", BackendErrorCode.CONTEXT_OVERFLOW, False),
        ("429", BackendErrorCode.RATE_LIMITED, True),
        ("500", BackendErrorCode.UNAVAILABLE, True),
        ("503", BackendErrorCode.UNAVAILABLE, True),
        ("302", BackendErrorCode.BAD_REQUEST, False),
    ],
)
async def test_faults(
    provider: FakeProvider, fault: str, code: BackendErrorCode, retryable: bool
) -> None:
    """Every fault is one BackendError with the true code; no broken reply ends as whole."""
    backend = backend_for(provider, fault)
    with pytest.raises(BackendError) as caught:
        await speak(backend.stream(turn()))
    assert (caught.value.code, caught.value.retryable) == (code, retryable)
    assert caught.value.message.isprintable()
    if fault == "429":
        assert caught.value.retry_after == 7
    assert provider.calls == 1
    await backend.aclose()


async def test_nobody_there() -> None:
    """A server that does not listen is unavailable, in start and in a turn."""
    backend = OpenAICompatBackend(OpenAICompatSettings("far", "http://127.0.0.1:1/v1", "m"))
    with pytest.raises(BackendError, match="cannot reach the server") as caught:
        await backend.start()
    assert caught.value.code is BackendErrorCode.UNAVAILABLE
    with pytest.raises(BackendError, match="cannot reach the server"):
        await speak(backend.stream(turn()))
    await backend.aclose()


async def test_closing_ends_the_generation(provider: FakeProvider) -> None:
    """Closing the stream stops the provider within a second."""
    backend = backend_for(provider, "long")
    stream = backend.stream(turn(sampling=Sampling(max_tokens=2000)))
    assert isinstance(await anext(stream), TextDelta)
    assert provider.live == 1
    await stream.aclose()
    async with asyncio.timeout(1):
        await provider.quiet.wait()
    assert provider.live == 0
    await backend.aclose()


async def test_key_comes_from_the_environment(
    provider: FakeProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The key is read from the named variable, sent, and shown nowhere; an empty one is refused."""
    monkeypatch.setenv("FAR_KEY", "canary-secret")
    backend = backend_for(provider, "ok", key_env="FAR_KEY")
    await backend.start()
    assert provider.authorization == "Bearer canary-secret"
    assert "canary" not in repr(vars(backend)["_settings"]) + str(backend.status())
    await backend.aclose()
    monkeypatch.setenv("FAR_KEY", "wrong")
    backend = backend_for(provider, "ok", key_env="FAR_KEY")
    with pytest.raises(BackendError, match="401") as caught:
        await backend.start()
    assert caught.value.code is BackendErrorCode.AUTH
    assert "wrong" not in str(caught.value)
    await backend.aclose()
    monkeypatch.delenv("FAR_KEY")
    with pytest.raises(BackendError, match="FAR_KEY is empty"):
        await backend_for(provider, "ok", key_env="FAR_KEY").start()


async def test_what_is_sent(provider: FakeProvider) -> None:
    """Messages and sampling are sent; fields beyond OpenAI's only where the server takes them."""
    sampling = Sampling(temperature=0.5, top_k=5, min_p=0.1, seed=3, stop=("X",), max_tokens=9)
    backend = backend_for(provider, "ok", extras=("top_k",))
    await speak(backend.stream(turn(sampling=sampling)))
    sent = provider.last
    assert [m["role"] for m in sent["messages"]] == ["system", "assistant", "user"]  # type: ignore[attr-defined]
    assert {k: sent[k] for k in ("temperature", "top_k", "seed", "stop", "max_tokens")} == {
        "temperature": 0.5,
        "top_k": 5,
        "seed": 3,
        "stop": ["X"],
        "max_tokens": 9,
    }
    assert "min_p" not in sent
    await backend.aclose()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("base_url", "ftp://x/v1"),
        ("base_url", "http://me:secret@host/v1"),
        ("base_url", "not a url"),
        ("model", ""),
        ("context", 1),
        ("extras", ("mirostat",)),
    ],
)
def test_settings_name_what_is_wrong(field: str, value: object) -> None:
    """Settings that cannot be are refused, naming the field."""
    good: dict[str, object] = {"name": "far", "base_url": "http://127.0.0.1/v1", "model": "m"}
    with pytest.raises(ValueError, match=field.removeprefix("base_")):
        OpenAICompatSettings(**good | {field: value})  # type: ignore[arg-type]


async def test_model_that_the_server_lacks(
    provider: FakeProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    """start names the models there are when ours is not among them."""
    backend = backend_for(provider, "mine")

    async def listed(path: str) -> object:
        return {"data": [{"id": "theirs"}, {"id": "others"}]}

    monkeypatch.setattr(vars(backend)["_http"], "get_json", listed)
    with pytest.raises(BackendError, match="no model 'mine'; it has theirs, others"):
        await backend.start()
