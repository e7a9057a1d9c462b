"""The HTTP side of docs/wire.md: the page, read-only lists, health, and the door to the socket."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from importlib.resources import files
from typing import TYPE_CHECKING

import structlog
from aiohttp import ClientConnectionResetError, WebSocketError, WSMsgType, web

from backends.api import BackendState
from gateway.auth import host_allowed, origin_allowed
from gateway.cards_http import CardRoutes
from gateway.chats_http import ChatRoutes
from gateway.errors import HistoryError
from gateway.metrics import CONTENT_TYPE
from gateway.openai_api import routes
from gateway.protocol import CloseCode, choose
from gateway.session import Session
from gateway.trace_http import TraceRoutes

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from aiohttp.typedefs import Handler

    from gateway.characters import Characters
    from gateway.chats import Chats
    from gateway.composing import Composer
    from gateway.config import ServerConfig
    from gateway.ensemble import Ensemble
    from gateway.erasure import Erasure
    from gateway.history import History
    from gateway.metrics import Metrics
    from gateway.presence import Presence
    from gateway.standby import Standby
    from gateway.turns import Turns
    from personas.library import Library
    from personas.limits import ImportLimits
    from personas.persona import JsonValue

__all__ = ["Parts", "make_app"]

log = structlog.get_logger()

RECEIVE_BYTES = 4 << 20
"""What is read of one message at all, so that a long one can be refused by name."""
WRITE_BYTES = 32 * 1024
UNREADABLE = frozenset({1002, 1007, 1009})
"""aiohttp's codes: no WebSocket frame, no UTF-8, larger than `RECEIVE_BYTES` (RFC 6455, 7.4.1)."""
CLOSE_SECONDS = 2.0
WILDCARDS = frozenset({"", "0.0.0.0", "::"})
"""Addresses to listen on that are nobody's name."""

TYPES = {
    ".css": "text/css",
    ".html": "text/html",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}
SAFETY = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "font-src 'self'; connect-src 'self'; manifest-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


@dataclass(frozen=True, slots=True)
class Parts:
    """What the routes serve. `folder` is the data folder, `sessions` are the open sockets."""

    server: str
    config: ServerConfig
    import_limits: ImportLimits
    folder: Path
    history: History
    characters: Characters
    ensemble: Ensemble
    composer: Composer
    chats: Chats
    turns: Turns
    presence: Presence
    erasure: Erasure
    metrics: Metrics
    sessions: set[Session] = field(default_factory=set)

    @property
    def library(self) -> Library:
        """The characters as they are now."""
        return self.characters.library


class _WebSocket(web.WebSocketResponse):
    """Closes with our code where aiohttp itself refuses what it reads."""

    async def close(self, *, code: int = 1000, message: bytes = b"", drain: bool = True) -> bool:
        ours = CloseCode.BAD_FRAME if code in UNREADABLE else code
        return await super().close(code=ours, message=message, drain=drain)


class _Socket:
    """Implements `gateway.session.Socket`."""

    def __init__(self, ws: web.WebSocketResponse) -> None:
        self._ws = ws

    async def receive(self) -> str | bytes | CloseCode:
        message = await self._ws.receive()
        if message.type in (WSMsgType.TEXT, WSMsgType.BINARY):
            data: str | bytes = message.data
            return data
        if isinstance(message.data, WebSocketError):
            return CloseCode.BAD_FRAME
        return CloseCode.NORMAL if self._ws.close_code == 1000 else CloseCode.GOING_AWAY

    async def send(self, data: str | bytes) -> None:
        try:
            if isinstance(data, str):
                await self._ws.send_str(data)
            else:
                await self._ws.send_bytes(data)
        except ClientConnectionResetError as error:
            raise ConnectionResetError(str(error)) from error

    async def close(self, code: int) -> None:
        await self._ws.close(code=code, drain=False)


def make_app(parts: Parts) -> web.Application:
    """The routes over the parts; owns nothing."""
    names = (parts.config.host, *parts.config.hosts)
    hosts = frozenset(name.lower() for name in names) - WILDCARDS
    origins = frozenset(parts.config.origins)

    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        if not host_allowed(request.headers.get("Host", ""), hosts):
            log.warning("host_refused", host=request.headers.get("Host", "")[:100])
            raise web.HTTPForbidden(
                text="This server does not answer to that name; see server.hosts in docs/config.md",
                headers=SAFETY,
            )
        try:
            return await handler(request)
        except HistoryError as error:
            return web.json_response({"error": error.message}, status=503)

    async def add_safety(request: web.Request, response: web.StreamResponse) -> None:
        response.headers["Server"] = parts.server
        for name, value in SAFETY.items():
            response.headers.setdefault(name, value)

    async def socket(request: web.Request) -> web.StreamResponse:
        offered = request.headers.get("Sec-WebSocket-Protocol", "")
        subprotocol = choose([name.strip() for name in offered.split(",")])
        ws = _WebSocket(
            protocols=(subprotocol.value,) if subprotocol else (),
            timeout=CLOSE_SECONDS,
            heartbeat=parts.config.heartbeat_seconds,
            compress=False,
            max_msg_size=RECEIVE_BYTES,
            writer_limit=WRITE_BYTES,
        )
        await ws.prepare(request)
        if not origin_allowed(request.headers.get("Origin"), request.headers["Host"], origins):
            log.warning("origin_refused", origin=request.headers["Origin"][:100])
            await ws.close(code=CloseCode.ORIGIN_REFUSED)
        elif subprotocol is None:
            await ws.close(code=CloseCode.NO_SUBPROTOCOL)
        else:
            session = Session(
                _Socket(ws),
                subprotocol,
                chats=parts.chats,
                turns=parts.turns,
                presence=parts.presence,
                limits=parts.config,
                server=parts.server,
            )
            parts.sessions.add(session)
            try:
                await session.run()
            finally:
                parts.sessions.discard(session)
        return ws

    app = web.Application(middlewares=[guard])
    app.on_response_prepare.append(add_safety)
    app.router.add_get("/v1/ws", socket)
    _add_page(app)
    _add_lists(app, parts)
    _add_health(app, parts)
    app.router.add_routes(routes(parts))
    app.router.add_routes(CardRoutes(parts).routes())
    app.router.add_routes(ChatRoutes(parts).routes())
    app.router.add_routes(TraceRoutes(parts).routes())
    return app


def _add_page(app: web.Application) -> None:
    """The page's files, read once from the package and served by hash."""
    pages: dict[str, tuple[bytes, str, str]] = {}
    for item in files("gateway.web").iterdir():
        suffix = "." + item.name.rpartition(".")[2]
        if suffix in TYPES and item.is_file():
            body = item.read_bytes()
            pages[item.name] = (body, TYPES[suffix], hashlib.sha256(body).hexdigest()[:32])

    async def page(request: web.Request) -> web.Response:
        name = request.match_info.get("name", "index.html")
        if name not in pages:
            raise web.HTTPNotFound(text="no such file")
        body, content_type, etag = pages[name]
        response = web.Response(body=body, content_type=content_type, charset="utf-8")
        response.etag = etag
        response.headers["Cache-Control"] = "no-cache"
        if any(tag.value in (etag, "*") for tag in request.if_none_match or ()):
            raise web.HTTPNotModified(headers={"ETag": f'"{etag}"', "Cache-Control": "no-cache"})
        return response

    app.router.add_get("/", page)
    app.router.add_get("/static/{name}", page)


def _add_lists(app: web.Application, parts: Parts) -> None:
    async def about(request: web.Request) -> web.Response:
        backend = _backend(parts.ensemble.default)
        return web.json_response({"server": parts.server, "backend": backend})

    async def backends(request: web.Request) -> web.Response:
        default = parts.ensemble.default
        data = [{**_backend(s), "default": s is default} for s in parts.ensemble]
        return web.json_response({"data": data})

    app.router.add_get("/v1/about", about)
    app.router.add_get("/v1/backends", backends)


def _add_health(app: web.Application, parts: Parts) -> None:
    async def livez(request: web.Request) -> web.Response:
        return _health({"loop": "ok"})

    async def readyz(request: web.Request) -> web.Response:
        status = parts.ensemble.default.status()
        ready = status.state is BackendState.READY
        try:
            await parts.history.check()
            history = "ok"
        except HistoryError as error:
            history = error.message
        return _health(
            {
                "backend": "ok" if ready else f"{status.state.value}: {status.detail}",
                "history": history,
                "draining": "yes" if parts.turns.draining else "ok",
            }
        )

    async def metrics(request: web.Request) -> web.Response:
        body = await parts.metrics.render(parts.ensemble)
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE})

    app.router.add_get("/metrics", metrics)
    app.router.add_get("/livez", livez)
    app.router.add_get("/readyz", readyz)


def _health(checks: Mapping[str, str]) -> web.Response:
    ok = all(state == "ok" for state in checks.values())
    return web.json_response(
        {"status": "ok" if ok else "unavailable", "checks": dict(checks)},
        status=200 if ok else 503,
        headers={"Cache-Control": "no-store"},
    )


def _backend(standby: Standby) -> dict[str, JsonValue]:
    status, model = standby.status(), standby.capabilities
    return {
        "name": standby.backend.name,
        "state": status.state.value if standby.begun else "idle",
        "detail": status.detail,
        "model": model.model if model else None,
        "context": model.context if model else None,
        "notice": model.notice if model else "",
    }
