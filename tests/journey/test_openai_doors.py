"""Bad requests, limits and departures at the surface that OpenAI's clients speak."""

from __future__ import annotations

import asyncio
import io
import json
from dataclasses import replace
from typing import TYPE_CHECKING

import aiohttp
import openai
import pytest
from aiohttp import web
from openai import AsyncOpenAI

from backends.scripted import Script, ScriptedBackend
from gateway.app import Server, serve
from gateway.openai_api import routes
from gateway.openai_schema import BODY_BYTES
from gateway.testing import PromptedBackend, connected

if TYPE_CHECKING:
    from openai.types.chat import ChatCompletionMessageParam

    from gateway.config import Config

TESS = "persona/tess"
ASK: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Good evening."}]


async def idle(backend: PromptedBackend) -> None:
    """Waits until no stream of the backend is open."""
    async with asyncio.timeout(5):
        while backend.open_streams:  # noqa: ASYNC110 - the backend tells nobody
            await asyncio.sleep(0.01)


async def speaking(backend: PromptedBackend, turns: int = 1) -> None:
    """Waits until the backend was asked so often."""
    async with asyncio.timeout(5):
        while len(backend.turns) < turns:  # noqa: ASYNC110 - the backend tells nobody
            await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    "model",
    ["gpt-4", "persona/tes", "backend/none", f"{TESS}@none", f"{TESS}@", "persona/", "tess"],
)
async def test_unknown_model(openai_client: AsyncOpenAI, model: str) -> None:
    """An unknown model is a NotFoundError, from either route, naming the field and the nearest."""
    with pytest.raises(openai.NotFoundError) as caught:
        await openai_client.chat.completions.create(model=model, messages=ASK)
    assert (caught.value.param, caught.value.code) == ("model", "model_not_found")
    if model == "persona/tes":
        assert "did you mean 'persona/tess'" in caught.value.message
    with pytest.raises(openai.NotFoundError):
        await openai_client.models.retrieve(model)


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"n": 2}, "n"),
        ({"logprobs": True}, "logprobs"),
        ({"mirostat": 2}, "mirostat"),
        ({"temperature": 9.0}, "temperature"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"messages": [{"role": "user", "content": "x" * 16_001}]}, "messages[0].content"),
    ],
)
async def test_refused_by_name(
    openai_client: AsyncOpenAI, more: dict[str, object], param: str
) -> None:
    """What cannot be honoured is a BadRequestError that names the field."""
    with pytest.raises(openai.BadRequestError) as caught:
        await openai_client.chat.completions.create(model=TESS, messages=ASK, extra_body=more)
    assert caught.value.param == param
    assert caught.value.type == "invalid_request_error"


async def test_backend_without_messages(openai_client: AsyncOpenAI) -> None:
    """A backend alone has no greeting."""
    with pytest.raises(openai.BadRequestError) as caught:
        await openai_client.chat.completions.create(model="backend/prompted", messages=[])
    assert caught.value.param == "messages"


async def test_backend_that_does_not_start(config: Config) -> None:
    """While the model loads for longer than people wait, the answer is 503 with Retry-After."""
    config = replace(config, server=replace(config.server, ready_seconds=0.01))
    server = await serve(config, backend=PromptedBackend(gate=asyncio.Event()))
    try:
        async with AsyncOpenAI(base_url=server.url + "v1", api_key="a", max_retries=0) as client:
            with pytest.raises(openai.InternalServerError) as caught:
                await client.chat.completions.create(model=TESS, messages=ASK)
        assert caught.value.status_code == 503
        assert caught.value.response.headers["Retry-After"] == "5"
    finally:
        await server.stop()


@pytest.mark.parametrize("stream", [False, True])
async def test_client_that_leaves_while_it_waits(
    server: Server, openai_client: AsyncOpenAI, backend: PromptedBackend, stream: bool
) -> None:
    """A client that gives up before the first word ends the reply too."""
    asking = asyncio.create_task(
        openai_client.chat.completions.create(model=TESS, messages=ASK, stream=stream)
    )
    await speaking(backend)
    asking.cancel()
    await asyncio.wait({asking})
    await idle(backend)


async def test_keep_alive(server: Server, backend: PromptedBackend) -> None:
    """While the prompt is being read comments come; a failure after them is in the stream."""
    app = web.Application()
    app.add_routes(routes(server.parts, keep_alive=0.02))
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    body = {"model": TESS, "messages": ASK, "stream": True}
    url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1/chat/completions"
    try:
        async with aiohttp.ClientSession() as session, session.post(url, json=body) as answer:
            assert answer.content_type == "text/event-stream"
            first = await answer.content.readuntil(b"\n\n")
            assert json.loads(first[6:])["choices"][0]["delta"]["role"] == "assistant"
            assert (await answer.content.readuntil(b"\n\n")).startswith(b": ")
            backend.fail()
            rest = (await answer.read()).decode().split("\n\n")
            assert json.loads(rest[-2][6:])["error"]["code"] == "crashed"
    finally:
        await runner.cleanup()


async def test_too_many(config: Config) -> None:
    """Above the limit of live replies, chats of the page included, there is a RateLimitError."""
    backend = PromptedBackend()
    server = await serve(
        replace(config, server=replace(config.server, live_turns=2)), backend=backend
    )
    try:
        async with (
            AsyncOpenAI(base_url=server.url + "v1", api_key="a", max_retries=0) as client,
            connected(server.url) as page,
        ):
            chat = await page.open("tess")
            await page.say(chat.chat, "Hi")
            asking = asyncio.create_task(client.chat.completions.create(model=TESS, messages=ASK))
            await speaking(backend, 2)
            with pytest.raises(openai.RateLimitError) as caught:
                await client.chat.completions.create(model=TESS, messages=ASK)
            assert caught.value.response.headers["Retry-After"] == "1"
            backend.finish()
            backend.finish()
            await asking
            await page.end()
            backend.finish()
            await client.chat.completions.create(model=TESS, messages=ASK)
    finally:
        await server.stop()


async def test_draining(server: Server, openai_client: AsyncOpenAI) -> None:
    """A server that stops refuses new requests, to be sent again."""
    server.parts.turns.draining = True
    with pytest.raises(openai.InternalServerError) as caught:
        await openai_client.chat.completions.create(model=TESS, messages=ASK)
    assert caught.value.response.headers["x-should-retry"] == "true"


async def test_bad_bodies(server: Server) -> None:
    """A body that is no JSON or too large has OpenAI's error object; the server goes on."""
    async with aiohttp.ClientSession(server.url) as session:
        for body, status, code in (
            (b"{", 400, "invalid_json"),
            (b" " * (BODY_BYTES + 1), 413, "body_too_large"),
            (b"[]", 400, "invalid_json"),
        ):
            async with session.post("/v1/chat/completions", data=io.BytesIO(body)) as answer:
                assert answer.status == status
                assert (await answer.json())["error"]["code"] == code


async def test_origins(config: Config) -> None:
    """A page of another site is refused unless it is named; nobody gets CORS headers."""
    config = replace(config, server=replace(config.server, origins=("https://chat.example",)))
    server = await serve(config, backend=ScriptedBackend(Script(delay=0)))
    body = {"model": TESS, "messages": ASK}
    path = "/v1/chat/completions"
    try:
        async with aiohttp.ClientSession(server.url) as session:
            for origin, status in (
                ("http://evil.example", 403),
                ("null", 403),
                ("https://chat.example", 200),
                (server.url.rstrip("/"), 200),
            ):
                async with session.post(path, json=body, headers={"Origin": origin}) as answer:
                    assert answer.status == status
                    assert "Access-Control-Allow-Origin" not in answer.headers
            async with session.post(path, json=body, headers={"Host": "evil.example"}) as answer:
                assert answer.status == 403
    finally:
        await server.stop()
