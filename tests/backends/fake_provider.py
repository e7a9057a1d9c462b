"""A provider of chat completions whose model name selects its fault. `live` counts generations."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from aiohttp import web

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

WORDS = ("I ", "keep ", "the ", "light", ".")
FOREVER = 60.0
STREAM = {"Content-Type": "text/event-stream"}

JSON_FAULTS: dict[str, tuple[int, object]] = {
    "context": (400, {"error": {"message": "too long", "code": "context_length_exceeded"}}),
    "context_words": (400, {"error": "This model's maximum context length is 9 tokens"}),
    "not_context": (500, {"error": {"message": "the context window closed on us"}}),
    "detail": (422, {"detail": "no such field"}),
    "list": (400, ["what"]),
}
IN_BAND: dict[str, object] = {
    "in_band": {"error": {"message": "the GPU is\n on fire"}},
    "in_band_text": {"error": "out of memory"},
    "in_band_429": {"error": {"message": "slow down", "code": 429}},
    "in_band_context": {"error": {"message": "too long", "code": 400, "type": "context_size"}},
}
RAW: dict[str, bytes] = {
    "bad_chunk": b"data: {not json}\n\n",
    "deep_chunk": b"data: " + b"[" * 200_000 + b"\n\n",
    "no_object": b"data: 7\n\n",
    "bad_choice": b'data: {"choices": [7]}\n\n',
    "bad_delta": b'data: {"choices": [{"delta": "x"}]}\n\n',
    "bad_text": b'data: {"choices": [{"delta": {"content": 7}}]}\n\n',
    "huge": b"data: " + b"x" * (2 << 20),
}


def delta(content: dict[str, str], reason: str | None = None) -> dict[str, object]:
    return {"choices": [{"index": 0, "delta": content, "finish_reason": reason}]}


class FakeProvider:
    """Speaks `WORDS`, or breaks as the model's name says."""

    def __init__(self) -> None:
        self.live = 0
        self.calls = 0
        self.last: dict[str, object] = {}
        self.models: object = {"object": "list", "data": []}
        self.authorization = ""
        self.url = ""
        self.asked = asyncio.Event()
        self._quiet = asyncio.Event()
        self._quiet.set()

    async def quiet(self) -> None:
        """Returns when no generation is open. Raises `TimeoutError` after a second."""
        async with asyncio.timeout(1):
            await self._quiet.wait()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[FakeProvider]:
        app = web.Application()
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/v1/chat/completions", self._chat)
        # A generation ends with its connection, as it does on a server that minds its clients.
        runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        try:
            yield self
        finally:
            await runner.cleanup()

    async def _models(self, request: web.Request) -> web.Response:
        self.authorization = request.headers.get("Authorization", "")
        if "wrong" in self.authorization:
            said = {"error": {"message": f"no such key: {self.authorization}"}}
            return web.json_response(said, status=401)
        return web.json_response(self.models)

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        self.calls += 1
        self.last = await request.json()
        self.live += 1
        self._quiet.clear()
        self.asked.set()
        try:
            with contextlib.suppress(ConnectionError):
                return await self._answer(request, str(self.last["model"]))
            return web.Response()
        finally:
            self.live -= 1
            if not self.live:
                self._quiet.set()

    async def _answer(self, request: web.Request, fault: str) -> web.StreamResponse:
        if fault.isdigit():
            return web.json_response(
                {"error": {"message": f"as you\nwished {request.headers.get('Authorization')}"}},
                status=int(fault),
                headers={"Retry-After": "7", "Location": "http://127.0.0.1:1/"},
            )
        if fault in JSON_FAULTS:
            status, said = JSON_FAULTS[fault]
            return web.json_response(said, status=status)
        if fault == "wrong_type":
            return web.Response(text="<html>", content_type="text/html")
        if fault == "packed":
            whole = f"data: {json.dumps(delta({'content': 'x'}, 'stop'))}\n\ndata: [DONE]\n\n"
            packed = gzip.compress(whole.encode())
            return web.Response(body=packed, headers=STREAM | {"Content-Encoding": "gzip"})
        if fault == "huge_error":
            return web.Response(status=500, body=b"x" * (5 << 20))
        if fault == "slow_start":
            await asyncio.sleep(FOREVER)
        answer = web.StreamResponse(headers=STREAM)
        await answer.prepare(request)
        if fault == "endless":
            while True:
                await answer.write((b": " + b"x" * 1000 + b"\n") * 256)
        await self._speak(answer, fault)
        return answer

    async def _speak(self, answer: web.StreamResponse, fault: str) -> None:
        async def send(chunk: object) -> None:
            await answer.write(f"data: {json.dumps(chunk)}\n\n".encode())

        await send(delta({"role": "assistant", "content": ""}))
        if fault == "empty":
            return
        if fault in ("role_then_stall", "pings_only"):
            await self._stall(answer, pings=fault == "pings_only")
        if fault == "thinks":
            await send(delta({"reasoning_content": "Hm."}))
        most = self.last["max_tokens"]
        assert isinstance(most, int)
        spoken = WORDS * {"long": 400, "usage_only": 0}.get(fault, 1)
        for index, word in enumerate(spoken[:most]):
            if index == 2 and fault != "ok" and await self._break(answer, fault):
                return
            await send(delta({"content": word}, "" if fault == "empty_reason" else None))
            await asyncio.sleep(0.002)
        reason = "length" if most < len(spoken) else "stop"
        if fault in ("content_filter", "tool_calls"):
            reason = fault
        if fault not in ("no_reason", "usage_only"):
            await send(delta({}, reason))
        if fault == "absurd_usage":
            await send({"choices": [], "usage": {"prompt_tokens": 10**30, "completion_tokens": -1}})
        elif fault != "no_usage":
            counts = {"prompt_tokens": 9, "completion_tokens": min(most, len(spoken))}
            details = {"prompt_tokens_details": {"cached_tokens": 4}}
            await send({"choices": [], "usage": counts | details})
        if fault != "no_done":
            await answer.write(b"data: [DONE]\n\n")

    async def _break(self, answer: web.StreamResponse, fault: str) -> bool:
        """Breaks in the middle of a reply; True when nothing more is to be said."""
        if fault == "reset":
            assert answer._req
            assert answer._req.transport
            answer._req.transport.abort()
        if fault in ("stall", "stall_with_pings"):
            await self._stall(answer, pings=fault == "stall_with_pings")
        if fault in RAW:
            await answer.write(RAW[fault])
        if fault in IN_BAND:
            await answer.write(f"data: {json.dumps(IN_BAND[fault])}\n\n".encode())
        return fault in ("cut", "reset")

    async def _stall(self, answer: web.StreamResponse, pings: bool) -> None:
        while pings:
            await answer.write(b": still here\n\n")
            await asyncio.sleep(0.05)
        await asyncio.sleep(FOREVER)
