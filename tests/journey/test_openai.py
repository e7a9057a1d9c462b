"""The official openai package talks with characters through the real server."""

from __future__ import annotations

import asyncio
import contextlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

import aiohttp
import openai
import pytest
from openai import AsyncOpenAI

from backends.api import Finished, FinishReason, Message, Role, Usage
from backends.errors import BackendErrorCode
from backends.scripted import Script, ScriptedBackend
from gateway.app import Server, serve
from gateway.testing import PromptedBackend

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from openai import AsyncStream
    from openai.types.chat import ChatCompletionChunk, ChatCompletionMessageParam

    from gateway.config import Config

DOC = Path(__file__).parents[2] / "docs" / "clients.md"
TESS = "persona/tess"
RAW = "backend/scripted"
ASK: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Good evening."}]
LINE = "Mind the step. Tea is on."
LONG = Script(lines=("word " * 5000,), delay=0.005)


@contextlib.asynccontextmanager
async def talking(
    config: Config, script: Script | None = None
) -> AsyncGenerator[tuple[AsyncOpenAI, ScriptedBackend], None]:
    """A client of a server with a scripted backend and another one to choose."""
    backend = ScriptedBackend(script or Script(lines=(LINE,), delay=0.001))
    server = await serve(config, backend=backend, more=[PromptedBackend()])
    async with AsyncOpenAI(base_url=server.url + "v1", api_key="any", max_retries=0) as client:
        try:
            yield client, backend
        finally:
            await server.stop()


async def heard(stream: AsyncStream[ChatCompletionChunk], texts: list[str]) -> None:
    """Reads a stream to its end into `texts`."""
    async for chunk in stream:
        texts += [choice.delta.content or "" for choice in chunk.choices]


async def test_models(config: Config) -> None:
    """Personas, personas on other backends and backends are models; each can be looked up."""
    async with talking(config) as (client, _):
        listed = [model async for model in client.models.list()]
        ids = [model.id for model in listed]
        assert {TESS, f"{TESS}@prompted", "persona/maren", RAW, "backend/prompted"} <= set(ids)
        assert len(ids) == len(set(ids))
        for model in listed:
            assert await client.models.retrieve(model.id) == model
            assert (model.object, model.owned_by) == ("model", "greenroom")
        tess = listed[ids.index(TESS)].model_dump()
        assert (tess["name"], tess["description"]) == ("Tess", "Opens and closes.")
        assert tess["greetings"] == ["Mind the third step, You."]
        assert (await client.models.retrieve(f"{TESS}@scripted")).id == f"{TESS}@scripted"


async def test_slash_in_the_path(server: Server) -> None:
    """A model is found with its slash written either way."""
    async with aiohttp.ClientSession(server.url) as session:
        for path in ("/v1/models/persona/tess", "/v1/models/persona%2Ftess"):
            async with session.get(path) as answer:
                assert (await answer.json())["id"] == TESS


async def test_whole_reply(config: Config) -> None:
    """A reply comes whole, with its reason and its counts."""
    async with talking(config) as (client, _):
        done = await client.chat.completions.create(model=TESS, messages=ASK)
        assert done.choices[0].message.content == LINE
        assert done.choices[0].finish_reason == "stop"
        assert done.model == TESS
        assert done.usage is not None
        assert done.usage.prompt_tokens > 10
        assert done.usage.completion_tokens == 6
        assert done.usage.total_tokens == done.usage.prompt_tokens + 6
        cut = await client.chat.completions.create(model=RAW, messages=ASK, max_tokens=2)
        assert cut.choices[0].finish_reason == "length"
        assert cut.choices[0].message.content == "Mind the"


async def test_streamed_reply(config: Config) -> None:
    """A reply streams: role first, text as it is spoken, the reason, counts if asked for."""
    async with talking(config) as (client, _):
        stream = await client.chat.completions.create(
            model=f"{TESS}@scripted",
            messages=ASK,
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = [chunk async for chunk in stream]
        assert len({chunk.id for chunk in chunks}) == 1
        choices = [chunk.choices[0] for chunk in chunks if chunk.choices]
        assert choices[0].delta.role == "assistant"
        texts = [choice.delta.content or "" for choice in choices]
        assert "".join(texts) == LINE
        assert len([text for text in texts if text]) == 6
        assert [c.finish_reason for c in choices] == [None] * (len(choices) - 1) + ["stop"]
        assert chunks[-1].choices == []
        assert chunks[-1].usage is not None
        assert chunks[-1].usage.completion_tokens == 6


async def test_cached_tokens(openai_client: AsyncOpenAI, backend: PromptedBackend) -> None:
    """How much of the prompt came from cache is in the counts."""
    backend.finish(Finished(FinishReason.COMPLETE, Usage(9, 7, 1)))
    done = await openai_client.chat.completions.create(model=TESS, messages=ASK)
    assert done.usage is not None
    assert done.usage.prompt_tokens_details is not None
    assert done.usage.prompt_tokens_details.cached_tokens == 7


@pytest.mark.parametrize("model", [TESS, RAW])
async def test_stop_strings(config: Config, model: str) -> None:
    """A stop string ends the reply and is no part of it, also when it is cut by tokens."""
    async with talking(config) as (client, _):
        stream = await client.chat.completions.create(
            model=model, messages=ASK, stop=["a is", "ep. T"], stream=True
        )
        choices = [chunk.choices[0] async for chunk in stream]
        assert "".join(c.delta.content or "" for c in choices) == "Mind the st"
        assert choices[-1].finish_reason == "stop"


@pytest.mark.parametrize("messages", [[], [{"role": "system", "content": "Be kind."}]])
async def test_greeting(config: Config, messages: list[ChatCompletionMessageParam]) -> None:
    """Without a user message the character greets, whole or streamed, and no model is asked."""
    never = PromptedBackend(gate=asyncio.Event())
    server = await serve(config, backend=never)
    try:
        async with AsyncOpenAI(base_url=server.url + "v1", api_key="any") as client:
            done = await client.chat.completions.create(model=TESS, messages=messages)
            assert done.choices[0].message.content == "Mind the third step, You."
            assert done.usage is not None
            assert done.usage.total_tokens == 0
            stream = await client.chat.completions.create(
                model=TESS, messages=messages, stream=True
            )
            texts = [chunk.choices[0].delta.content or "" async for chunk in stream]
            assert "".join(texts) == "Mind the third step, You."
    finally:
        await server.stop()


async def test_prompt_of_a_persona(openai_client: AsyncOpenAI, backend: PromptedBackend) -> None:
    """Names, system texts and sampling reach the prompt; the greeting opens the conversation."""
    backend.say("Hm.")
    backend.finish()
    await openai_client.chat.completions.create(
        model=TESS,
        messages=[
            {"role": "system", "content": "It is Sunday, {{char}}."},
            {"role": "user", "content": "Hello", "name": "Tom"},
            {"role": "assistant", "content": "Tom."},
            {"role": "developer", "content": "It rains."},
            {"role": "user", "content": "Yes"},
        ],
        temperature=0,
        seed=3,
        extra_body={"top_k": 5, "metadata": {"chat_id": "c9"}},
    )
    turn = backend.turns[0]
    scene, *said = turn.messages
    assert "\n\nIt is Sunday, {{char}}.\n\nTess tests doors." in scene.text
    assert said == [
        Message(Role.ASSISTANT, "Mind the third step, Tom.", "Tess"),
        Message(Role.USER, "Hello", "Tom"),
        Message(Role.ASSISTANT, "Tom.", "Tess"),
        Message(Role.SYSTEM, "It rains.", ""),
        Message(Role.USER, "Yes", "Tom"),
    ]
    assert (turn.conversation, turn.speaker, turn.stable) == ("c9", "Tess", 6)
    assert (turn.sampling.temperature, turn.sampling.seed, turn.sampling.top_k) == (0, 3, 5)


async def test_greeting_once(openai_client: AsyncOpenAI, backend: PromptedBackend) -> None:
    """A client that shows the greeting and sends it back does not get it twice."""
    backend.finish()
    await openai_client.chat.completions.create(
        model=TESS, messages=[{"role": "assistant", "content": "Mind it."}, *ASK]
    )
    assert [m.text for m in backend.turns[0].messages[1:]] == ["Mind it.", "Good evening."]


async def test_prompt_of_a_backend(openai_client: AsyncOpenAI, backend: PromptedBackend) -> None:
    """A raw backend gets the messages as they are."""
    backend.finish()
    await openai_client.chat.completions.create(
        model="backend/prompted",
        messages=[{"role": "system", "content": "{{char}}"}, *ASK],
        user="u1",
    )
    turn = backend.turns[0]
    assert turn.messages == (Message(Role.SYSTEM, "{{char}}"), Message(Role.USER, "Good evening."))
    assert (turn.speaker, turn.stable) == ("Assistant", 2)
    assert turn.conversation.startswith("user_")


async def test_nothing_is_stored(config: Config) -> None:
    """A reply leaves no chat behind."""
    server = await serve(config, backend=ScriptedBackend(Script(delay=0)))
    try:
        async with AsyncOpenAI(base_url=server.url + "v1", api_key="any") as client:
            await client.chat.completions.create(model=TESS, messages=ASK)
        assert await server.parts.history.summaries() == ()
    finally:
        await server.stop()


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (BackendErrorCode.RATE_LIMITED, openai.RateLimitError),
        (BackendErrorCode.OVERLOADED, openai.RateLimitError),
        (BackendErrorCode.UNAVAILABLE, openai.InternalServerError),
        (BackendErrorCode.AUTH, openai.InternalServerError),
        (BackendErrorCode.BAD_REQUEST, openai.BadRequestError),
        (BackendErrorCode.CONTEXT_OVERFLOW, openai.BadRequestError),
        (BackendErrorCode.INTERNAL, openai.InternalServerError),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_failing_backend(
    config: Config, code: BackendErrorCode, error: type[openai.APIStatusError], stream: bool
) -> None:
    """A backend that fails before its first word has the status that tells why."""
    script = Script(lines=(LINE,), delay=0, fail_after=0, failure=code)
    async with talking(config, script) as (client, backend):
        with pytest.raises(error) as caught:
            await client.chat.completions.create(model=TESS, messages=ASK, stream=stream)
        assert ("Retry-After" in caught.value.response.headers) == (error is openai.RateLimitError)
        assert backend.live == 0


@pytest.mark.parametrize("model", [TESS, RAW])
async def test_prompt_too_long(config: Config, model: str) -> None:
    """A prompt that does not fit is refused with the code that clients know."""
    async with talking(config, Script(delay=0, context=60)) as (client, _):
        with pytest.raises(openai.BadRequestError) as caught:
            await client.chat.completions.create(
                model=model, messages=[{"role": "user", "content": "word " * 100}]
            )
        assert caught.value.code == "context_length_exceeded"


async def test_more_tokens_than_context(config: Config) -> None:
    """A client may ask for more tokens than there are; the prompt keeps its room."""
    async with talking(config, Script(lines=(LINE,), delay=0, context=300)) as (client, _):
        done = await client.chat.completions.create(model=TESS, messages=ASK, max_tokens=4096)
        assert done.choices[0].message.content == LINE


async def test_failing_in_the_middle(config: Config) -> None:
    """A stream that breaks says so inside the stream and never ends as whole."""
    async with talking(config, Script(lines=(LINE,), delay=0, fail_after=3)) as (client, _):
        async with client.chat.completions.with_streaming_response.create(
            model=TESS, messages=ASK, stream=True
        ) as raw:
            lines = [line async for line in raw.iter_lines() if line]
        assert "data: [DONE]" not in lines
        assert json.loads(lines[-1].removeprefix("data: "))["error"]["code"] == "cut"
        stream = await client.chat.completions.create(model=TESS, messages=ASK, stream=True)
        texts: list[str] = []
        with pytest.raises(openai.APIError, match="script says to fail"):
            await heard(stream, texts)
        assert "".join(texts) == "Mind the step."


async def test_client_that_leaves_a_stream(config: Config) -> None:
    """A client that closes in the middle ends the reply at the backend."""
    async with talking(config, LONG) as (client, backend):
        stream = await client.chat.completions.create(
            model=TESS, messages=ASK, stream=True, max_tokens=5000
        )
        async for chunk in stream:
            if chunk.choices[0].delta.content:
                break
        assert backend.live == 1
        await stream.close()
        async with asyncio.timeout(5):
            while backend.live:  # noqa: ASYNC110 - the backend tells nobody
                await asyncio.sleep(0.01)


async def test_stop_of_the_server(config: Config) -> None:
    """A server that stops in the middle of a reply frees it; the stream does not end as whole."""
    backend = ScriptedBackend(LONG)
    server = await serve(config, backend=backend)
    async with AsyncOpenAI(base_url=server.url + "v1", api_key="a", max_retries=0) as client:
        stream = await client.chat.completions.create(
            model=TESS, messages=ASK, stream=True, max_tokens=5000
        )
        await anext(aiter(stream))
        async with asyncio.timeout(10):
            await server.stop()
        assert backend.live == 0
        with pytest.raises(openai.APIError, match="server stopped"):
            await heard(stream, [])


async def test_example_of_the_doc(config: Config) -> None:
    """The program in docs/clients.md runs as it stands, but for the port."""
    lines = DOC.read_text(encoding="utf-8").splitlines()
    program = "\n".join(line[4:] for line in lines if line.startswith("    "))
    assert "127.0.0.1:8642" in program
    async with talking(config) as (client, _):
        here = str(client.base_url).rstrip("/")
        program = program.replace("http://127.0.0.1:8642/v1", here) + "\nclient.close()\n"
        said: list[str] = []
        names = {"print": lambda text, **_: said.append(text)}
        await asyncio.to_thread(exec, compile(program, str(DOC), "exec"), names)
    assert "".join(said) == LINE
