"""The page, the lists and the health of a running server."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import aiohttp
import pytest

from gateway.app import Server, serve
from gateway.testing import PromptedBackend, connected

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from gateway.config import Config


@pytest.fixture
async def web(server: Server) -> AsyncGenerator[aiohttp.ClientSession, None]:
    async with aiohttp.ClientSession(server.url) as session:
        yield session


async def test_page_is_safe(web: aiohttp.ClientSession) -> None:
    """The page comes with a strict policy, its type, and a hash to ask again with."""
    async with web.get("/") as answer:
        assert answer.status == 200
        assert answer.content_type == "text/html"
        policy = answer.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "require-trusted-types-for 'script'" in policy
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Cache-Control"] == "no-cache"
        etag = answer.headers["ETag"]
        assert "<script>" not in await answer.text()
    async with web.get("/", headers={"If-None-Match": etag}) as answer:
        assert (answer.status, answer.headers["ETag"]) == (304, etag)
    async with web.get("/", headers={"If-None-Match": '"other"'}) as answer:
        assert answer.status == 200


async def test_static_files(web: aiohttp.ClientSession) -> None:
    """The page's files have their types; nothing else of the package is served."""
    async with web.get("/static/app.js") as answer:
        assert (answer.status, answer.content_type) == (200, "text/javascript")
    for path in ("/static/__init__.py", "/static/none.js", "/static/..%2Fapp.py", "/none"):
        async with web.get(path) as answer:
            assert answer.status == 404
            assert "Content-Security-Policy" in answer.headers


async def test_personas(web: aiohttp.ClientSession) -> None:
    """The list has the card of the data folder beside the shipped ones, macros filled in."""
    async with web.get("/v1/personas") as answer:
        listed = {p["id"]: p for p in (await answer.json())["data"]}
    assert listed["tess"].pop("revision")
    assert listed["tess"] == {
        "id": "tess",
        "name": "Tess",
        "tagline": "Opens and closes.",
        "greeting": "Mind the third step, You.",
        "tags": ["dry"],
        "creator": "the tests",
        "avatar": None,
        "own": True,
    }
    pictured = [p for p in listed.values() if p["avatar"]]
    assert pictured
    async with web.get(pictured[0]["avatar"]) as answer:
        assert answer.status == 200
        assert answer.content_type.startswith("image/")
        assert "sandbox" in answer.headers["Content-Security-Policy"]
    for path in ("/v1/personas/tess/avatar", "/v1/personas/nobody/avatar"):
        async with web.get(path) as answer:
            assert answer.status == 404


async def test_chats_newest_first(
    web: aiohttp.ClientSession, server: Server, backend: PromptedBackend
) -> None:
    """Chats are listed with their persona and the beginning of what was said last."""
    async with connected(server.url) as client:
        first = await client.open("tess", "Ann")
        second = await client.open("tess")
        await client.say(first.chat, "Hi")
        backend.say("Hello yourself.")
        backend.finish()
        await client.end()
    async with web.get("/v1/chats") as answer:
        data = (await answer.json())["data"]
    assert [c["id"] for c in data] == [first.chat, second.chat]
    assert data[0]["preview"] == "Hello yourself."
    assert data[0]["persona"] == {"id": "tess", "name": "Tess"}
    assert data[0]["user"] == "Ann"
    assert data[0]["newer"] is False
    assert data[0]["updated"] >= data[1]["updated"]


async def test_about_and_health(web: aiohttp.ClientSession, server: Server) -> None:
    """A server that is ready says so, and with what it speaks."""
    await server.parts.ensemble.default.begin()
    async with web.get("/v1/about") as answer:
        about = await answer.json()
    assert about["server"].startswith("greenroom/")
    assert about["backend"] == {
        "name": "prompted",
        "state": "ready",
        "detail": "",
        "model": "prompted",
        "context": 100_000,
        "notice": "",
    }
    for path in ("/livez", "/readyz"):
        async with web.get(path) as answer:
            assert answer.status == 200
            assert (await answer.json())["status"] == "ok"


async def test_page_before_the_model(config: Config) -> None:
    """While the backend loads, the page is there, readyz is 503 and says why."""
    gate = asyncio.Event()
    server = await serve(config, backend=PromptedBackend(gate=gate))
    try:
        async with aiohttp.ClientSession(server.url) as web:
            async with web.get("/") as answer:
                assert answer.status == 200
            async with web.get("/readyz") as answer:
                assert answer.status == 503
                checks = (await answer.json())["checks"]
            assert checks["backend"] == "starting: waiting for the gate"
            assert checks["history"] == "ok"
            async with web.get("/v1/about") as answer:
                assert (await answer.json())["backend"]["state"] == "starting"
            gate.set()
            await server.parts.ensemble.default.begin()
            async with web.get("/readyz") as answer:
                assert answer.status == 200
    finally:
        await server.stop()


async def test_foreign_host(web: aiohttp.ClientSession) -> None:
    """Under a name that is not ours nothing is served."""
    for path in ("/", "/v1/personas", "/v1/chats", "/static/app.js"):
        async with web.get(path, headers={"Host": "evil.example"}) as answer:
            assert answer.status == 403
            assert "Content-Security-Policy" in answer.headers


async def test_history_that_fails(web: aiohttp.ClientSession, server: Server) -> None:
    """When conversations cannot be read, lists and readyz say so with 503."""
    await server.parts.history.aclose()
    for path in ("/v1/chats", "/readyz"):
        async with web.get(path) as answer:
            assert answer.status == 503
