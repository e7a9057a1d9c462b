"""A provider of chat completions whose model name selects its fault. `live` counts generations."""

from __future__ import annotations

import asyncio
import contextlib
import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from aiohttp import web

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

WORDS = ("I ", "keep ", "the ", "light", ".")


class FakeProvider:
    """Speaks `WORDS`, or breaks as the model's name says."""

    def __init__(self) -> None:
        self.live = 0
        self.calls = 0
        self.last: dict[str, object] = {}
        self.authorization = ""
        self.url = ""
        self.quiet = asyncio.Event()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[FakeProvider]:
        app = web.Application()
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/v1/chat/completions", self._chat)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        try:
            yield self
        finally:
            await runner.cleanup()

    async def _models(self, request: web.Request) -> web.Response:
        self.authorization = request.headers.get("Authorization", "")
        if self.authorization == "Bearer wrong":
            return web.json_response({"error": {"message": "no such key"}}, status=401)
        return web.json_response({"object": "list", "data": []})

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        self.calls += 1
        body = await request.json()
        self.last = body
        fault = str(body["model"])
        if fault.isdigit():
            return web.json_response(
                {"error": {"message": "as you\nwished", "code": None}},
                status=int(fault),
                headers={"Retry-After": "7", "Location": "http://127.0.0.1:1/"},
            )
        if fault == "wrong_type":
            return web.Response(text="<html>", content_type="text/html")
        if fault == "context":
            error = {"message": "too long", "code": "context_length_exceeded"}
            return web.json_response({"error": error}, status=400)
        if fault == "slow_start":
            await asyncio.sleep(60)
        answer = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await answer.prepare(request)
        self.live += 1
        self.quiet.clear()
        try:
            with contextlib.suppress(ConnectionError):
                await self._speak(answer, fault, int(body["max_tokens"]))
        finally:
            self.live -= 1
            if not self.live:
                self.quiet.set()
        return answer

    async def _speak(self, answer: web.StreamResponse, fault: str, most: int) -> None:
        async def send(chunk: dict[str, object]) -> None:
            await answer.write(f"data: {json.dumps(chunk)}\n\n".encode())

        def delta(content: dict[str, str], reason: str | None = None) -> dict[str, object]:
            return {"choices": [{"index": 0, "delta": content, "finish_reason": reason}]}

        await send(delta({"role": "assistant", "content": ""}))
        if fault == "thinks":
            await send(delta({"reasoning_content": "Hm."}))
        if fault == "empty":
            return
        spoken = WORDS * 400 if fault == "long" else WORDS
        for index, word in enumerate(spoken[:most]):
            if index == 2:
                if fault == "cut":
                    return
                if fault == "reset":
                    assert answer._req
                    assert answer._req.transport
                    answer._req.transport.abort()
                    return
                if fault == "stall":
                    await asyncio.sleep(60)
                if fault == "bad_chunk":
                    await answer.write(b"data: {not json}\n\n")
                if fault == "bad_shape":
                    await answer.write(b'data: {"choices": [{"delta": {"content": 7}}]}\n\n')
                if fault == "in_band":
                    await send({"error": {"message": "the GPU is on fire"}})
                if fault == "huge":
                    await answer.write(b"data: " + b"x" * (2 << 20))
            await send(delta({"content": word}))
            await asyncio.sleep(0.002)
        reason = "length" if most < len(spoken) else "stop"
        if fault == "filter":
            reason = "content_filter"
        if fault != "no_reason":
            await send(delta({}, reason))
        counts = {"prompt_tokens": 9, "completion_tokens": min(most, len(spoken))}
        details = {"prompt_tokens_details": {"cached_tokens": 4}}
        await send({"choices": [], "usage": counts | details})
        if fault != "no_done":
            await answer.write(b"data: [DONE]\n\n")
