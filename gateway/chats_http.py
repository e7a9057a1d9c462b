"""Chats over HTTP: files of other programs in, files for them out, and the pin of a revision."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING

import structlog
from aiohttp import web

from gateway.cards_http import Upload, Uploads, check_origin, disposition, refusal
from gateway.errors import ErrorCode, Refused
from gateway.failures import describe
from gateway.history import Chat, ChatOrigin, StoredMessage
from gateway.ids import new_id
from personas.chats import ChatFile, read_chats, to_json, to_jsonl, to_text
from personas.persona import CardError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from gateway.http import Parts
    from personas.persona import JsonValue, Persona

__all__ = ["FORMATS", "ChatRoutes", "chat_of", "file_of"]

log = structlog.get_logger()

FORMATS = {
    "jsonl": (".jsonl", "application/x-ndjson"),
    "json": (".json", "application/json"),
    "text": (".txt", "text/plain"),
}
STATUS = {
    ErrorCode.UNKNOWN_CHAT: 404,
    ErrorCode.UNKNOWN_PERSONA: 404,
    ErrorCode.TURN_IN_PROGRESS: 409,
}


class ChatRoutes:
    """The handlers; `routes` says where they are."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._uploads = Uploads(parts.folder, parts.import_limits)

    def routes(self) -> list[web.RouteDef]:
        """All paths of chats."""
        return [
            web.get("/v1/chats", self.listing),
            web.post("/v1/chats", self._guarded(self.bring)),
            web.delete("/v1/chats/{id}", self._guarded(self.remove)),
            web.get("/v1/chats/{id}/export", self._guarded(self.export)),
            web.put("/v1/chats/{id}/revision", self._guarded(self.pin)),
        ]

    def _guarded(
        self, handler: Callable[[web.Request], Awaitable[web.Response]]
    ) -> Callable[[web.Request], Awaitable[web.Response]]:
        async def guarded(request: web.Request) -> web.Response:
            try:
                if request.method != "GET":
                    check_origin(request, self._parts)
                return await handler(request)
            except CardError as error:
                return refusal(error)
            except Refused as error:
                told = describe(error)
                body = {"code": told.code, "message": told.message, "where": ""}
                return web.json_response({"error": body}, status=STATUS.get(error.code, 422))

        return guarded

    async def listing(self, request: web.Request) -> web.Response:
        """All chats, the newest first; `newer`: the character has changed since."""
        newest = {persona.id: persona.revision for persona in self._parts.library.list()}
        data: list[JsonValue] = [
            {
                "id": c.id,
                "persona": {"id": c.persona_id, "name": c.persona_name},
                "user": c.user,
                "preview": c.preview,
                "updated": c.updated,
                "revision": c.persona_revision,
                "newer": newest.get(c.persona_id, c.persona_revision) != c.persona_revision,
            }
            for c in await self._parts.history.summaries()
        ]
        return web.json_response({"data": data})

    async def remove(self, request: web.Request) -> web.Response:
        """Deletes a chat and what was cached of it; 202 when a backend has yet to do that."""
        erasure = self._parts.erasure
        await self._parts.turns.delete(request.match_info["id"], erasure.names)
        return web.Response(status=204 if await erasure.carry_out() else 202)

    async def bring(self, request: web.Request) -> web.Response:
        """The chats of one file become chats with the character `persona`."""
        persona = self._parts.turns.persona(request.query.get("persona", ""))
        async with aclosing(self._uploads.receive(request)) as uploads:
            upload = await anext(uploads)
            if not isinstance(upload, Upload):
                raise upload[1]
            raw = await asyncio.to_thread(upload.path.read_bytes)
        files = await asyncio.to_thread(read_chats, raw, limits=self._parts.import_limits)
        data = [await self._add(file, persona) for file in files]
        return web.json_response({"data": data}, status=201)

    async def _add(self, file: ChatFile, persona: Persona) -> JsonValue:
        chat, origin = chat_of(file, persona)
        await self._parts.chats.add(chat, origin)
        log.info("chat_imported", conversation=chat.id, persona=persona.id, format=file.format)
        return {
            "chat": chat.id,
            "persona": {"id": persona.id, "name": persona.name},
            "user": chat.user,
            "messages": len(chat.messages),
            "format": file.format,
            "findings": [
                {"code": f.code, "where": f.where, "message": f.message} for f in file.findings
            ],
        }

    async def export(self, request: web.Request) -> web.Response:
        """The chat as a file; `format` is one of `FORMATS`."""
        form = request.query.get("format", "jsonl")
        if form not in FORMATS:
            raise CardError("bad_format", f"format must be one of {', '.join(FORMATS)}")
        live = await self._parts.chats.get(request.match_info["id"])
        origin = await self._parts.history.origin(live.chat.id)
        file = file_of(live.chat, origin)
        write = {"jsonl": to_jsonl, "json": to_json, "text": _text}[form]
        body = await asyncio.to_thread(write, file)
        ending, media_type = FORMATS[form]
        return web.Response(
            body=body,
            content_type=media_type,
            charset="utf-8",
            headers={
                "Content-Disposition": disposition(live.chat.id + ending),
                "Content-Security-Policy": "default-src 'none'; sandbox",
                "Cache-Control": "no-store",
            },
        )

    async def pin(self, request: web.Request) -> web.Response:
        """The chat goes on with `revision`, or with the newest one."""
        wanted = request.query.get("revision") or None
        persona = await self._parts.turns.pin(request.match_info["id"], wanted and wanted[:80])
        told = {"chat": request.match_info["id"], "revision": persona.revision}
        return web.json_response(told)


def chat_of(file: ChatFile, persona: Persona) -> tuple[Chat, ChatOrigin]:
    """A chat with the persona out of a file, its messages under new ids, and the file's rest."""
    said = file.conversation
    ids = {message.id: new_id("m") for message in said.messages}
    messages = tuple(
        StoredMessage(
            id=ids[message.id],
            parent=None if message.parent is None else ids[message.parent],
            role=message.role,
            name=message.name,
            text=message.text,
            sampled=message.sampled,
        )
        for message in said.messages
    )
    chat = Chat(
        id=new_id("c"),
        persona_id=persona.id,
        persona_revision=persona.revision,
        persona_name=persona.name,
        user=said.user or "You",
        about=said.about_user,
        note=said.note,
        head=None if said.head is None else ids[said.head],
        messages=messages,
    )
    origin = ChatOrigin(
        format=file.format,
        header=dict(file.header),
        lines=tuple(dict(line) for line in file.lines),
        line_of={ids[id]: line for id, line in file.line_of.items() if id in ids},
    )
    return chat, origin


def file_of(chat: Chat, origin: ChatOrigin | None) -> ChatFile:
    """The chat as a file has it, with what the file that it came from said besides."""
    conversation = chat.tree()
    if origin is None:
        return ChatFile(conversation)
    known = {message.id for message in conversation.messages}
    return replace(
        ChatFile(conversation, origin.format),
        header=origin.header,
        lines=origin.lines,
        line_of={id: line for id, line in origin.line_of.items() if id in known},
    )


def _text(file: ChatFile) -> bytes:
    return to_text(file.conversation).encode(errors="replace")
