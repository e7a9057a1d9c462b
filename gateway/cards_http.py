"""Characters over HTTP: bring, list, look at, take away. See docs/wire.md.

A file is streamed to disk and read there within the limits of `personas.limits`; whatever is
refused says why by a code, and leaves nothing behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import shutil
from contextlib import aclosing
from typing import TYPE_CHECKING, NamedTuple

import structlog
from aiohttp import BodyPartReader, MultipartReader, web

from gateway.auth import origin_allowed
from gateway.cards_report import FORMS, Exported, bound, exported, report_json
from personas.importer import ImportedBook, read_any
from personas.persona import CardError, PersonaNotFound
from personas.prompt import greetings

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from gateway.http import Parts
    from personas.limits import ImportLimits
    from personas.persona import JsonValue, Persona
    from personas.shelf import Entry

__all__ = [
    "CardRoutes",
    "Upload",
    "Uploads",
    "check_origin",
    "disposition",
    "error_json",
    "persona_json",
    "refusal",
]

log = structlog.get_logger()

KEEP = 20_000
"""Lines of the list in memory."""
READ_BYTES = 1 << 16
FILES = 100
"""Files of one request."""
INCOMING = "incoming"
"""The folder below the data folder where files wait to be read."""

TOO_LARGE = frozenset(
    {
        "too_large",
        "too_deep",
        "too_many_values",
        "too_many_entries",
        "too_many_files",
        "too_many_messages",
        "too_many_pixels",
        "inflate_bomb",
    }
)
UNSUPPORTED = frozenset({"encrypted", "unsupported", "html_page", "no_card", "not_multipart"})


class Upload(NamedTuple):
    """One file of a request, on disk."""

    path: Path
    filename: str


class Uploads:
    """Takes the files of multipart requests to disk, within `limits`."""

    def __init__(self, folder: Path, limits: ImportLimits) -> None:
        self._folder = folder / INCOMING
        self._limits = limits
        shutil.rmtree(self._folder, ignore_errors=True)  # what a killed server left

    async def receive(
        self, request: web.Request
    ) -> AsyncGenerator[Upload | tuple[str, CardError], None]:
        """Each file as it comes, gone again when the next one is asked for; one that is too large
        as its name and error, read to its end without being kept.

        Raises `CardError` for the request as a whole: `not_multipart`, `bad_multipart`,
        `too_many_files`, `no_file`.
        """
        if not request.content_type.startswith("multipart/"):
            message = "the body must be multipart/form-data with one part for each file"
            raise CardError("not_multipart", message)
        count = 0
        try:
            async for part in await request.multipart():
                if isinstance(part, MultipartReader) or part is None:
                    raise CardError("bad_multipart", "a part of the body is multipart itself")
                if part.filename is None:
                    await part.release()
                    continue
                count += 1
                if count > FILES:
                    message = f"more than {FILES} files in one request"
                    raise CardError("too_many_files", message)
                async with self._take(part) as taken:
                    yield taken
        except (ValueError, web.RequestPayloadError) as error:
            raise CardError("bad_multipart", f"the body is no multipart: {error}") from error
        if not count:
            raise CardError("no_file", "the body has no part with a file name")

    @contextlib.asynccontextmanager
    async def _take(self, part: BodyPartReader) -> AsyncIterator[Upload | tuple[str, CardError]]:
        filename = (part.filename or "")[:200]
        await asyncio.to_thread(self._folder.mkdir, mode=0o700, exist_ok=True)
        path = self._folder / secrets.token_hex(8)
        size, most = 0, self._limits.file_bytes
        try:
            with path.open("wb") as file:
                while chunk := await part.read_chunk(READ_BYTES):
                    size += len(chunk)
                    if size <= most:
                        await asyncio.to_thread(file.write, chunk)
            if size > most:
                yield filename, CardError("too_large", f"the file has more than {most} bytes")
            else:
                yield Upload(path, filename)
        finally:
            path.unlink(missing_ok=True)


class CardRoutes:
    """The handlers; `routes` says where they are."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._uploads = Uploads(parts.folder, parts.import_limits)
        self._lines: dict[tuple[str, str, str | None, bool], JsonValue] = {}

    def routes(self) -> list[web.RouteDef]:
        """All paths of characters."""
        one = "/v1/personas/{id}"
        return [
            web.get("/v1/personas", self.listing),
            web.post("/v1/personas", self._guarded(self.bring)),
            web.put(one, self._guarded(self.replace)),
            web.delete(one, self._guarded(self.remove)),
            web.post(f"{one}/lorebook", self._guarded(self.bind)),
            web.get(f"{one}/avatar", self._guarded(self.avatar)),
            web.get(f"{one}/report", self._guarded(self.report)),
            web.get(f"{one}/revisions", self._guarded(self.revisions)),
            web.get(f"{one}/export", self._guarded(self.export)),
        ]

    def _guarded(
        self, handler: Callable[[web.Request], Awaitable[web.Response]]
    ) -> Callable[[web.Request], Awaitable[web.Response]]:
        """With our errors as answers, and for writing requests the page's origin alone."""

        async def guarded(request: web.Request) -> web.Response:
            try:
                if request.method != "GET":
                    check_origin(request, self._parts)
                return await handler(request)
            except CardError as error:
                return refusal(error)
            except PersonaNotFound as error:
                unknown = CardError("unknown_persona", error.message)
                return web.json_response({"error": error_json(unknown)}, status=404)

        return guarded

    async def listing(self, request: web.Request) -> web.Response:
        """`q` are words to look for, each `tag` one that must be there."""
        library = self._parts.library
        words, tags = request.query.get("q", ""), request.query.getall("tag", [])
        found = library.search(words[:200], tags[:20])
        troubles = [
            {"file": t.file, "code": t.code, "message": t.message, "where": t.where, "kept": t.kept}
            for t in library.troubles
        ]
        data = [self._line(persona) for persona in found]
        return web.json_response({"data": data, "tags": dict(library.tags()), "troubles": troubles})

    def _line(self, persona: Persona) -> JsonValue:
        """A line of the list, made once: a thousand greetings are not expanded at each look."""
        own = self._parts.library.is_own(persona.id)
        key = (persona.id, persona.revision, persona.avatar, own)
        if key not in self._lines:
            if len(self._lines) >= KEEP:
                self._lines.clear()
            self._lines[key] = persona_json(persona, own=own)
        return self._lines[key]

    async def bring(self, request: web.Request) -> web.Response:
        """Takes in each file as a character of its own."""
        lines: list[JsonValue] = []
        failed: list[CardError] = []
        added = False
        async with aclosing(self._uploads.receive(request)) as uploads:
            async for upload in uploads:
                name = upload.filename if isinstance(upload, Upload) else upload[0]
                told: dict[str, JsonValue]
                try:
                    if not isinstance(upload, Upload):
                        raise upload[1]
                    state, told = await self._add(upload)
                except CardError as error:
                    failed.append(error)
                    state, told = "refused", {"error": error_json(error)}
                added = added or state == "added"
                lines.append({"file": name, "state": state, **told})
        if failed and len(failed) == len(lines):
            return refusal(failed[0], data=lines)
        return web.json_response({"data": lines}, status=201 if added else 200)

    async def replace(self, request: web.Request) -> web.Response:
        """The one file is a new revision of the character, or a new one of that id."""
        persona_id = _id(request)
        async with aclosing(self._uploads.receive(request)) as uploads:
            upload = await anext(uploads)
            if not isinstance(upload, Upload):
                raise upload[1]
            state, told = await self._add(upload, persona_id)
        line: JsonValue = {"file": upload.filename, "state": state, **told}
        return web.json_response({"data": [line]}, status=201 if state == "added" else 200)

    async def bind(self, request: web.Request) -> web.Response:
        """The one file is a lorebook, and becomes the character's in a new revision of it."""
        persona_id = _id(request)
        entry = self._parts.library.entry(persona_id)
        async with aclosing(self._uploads.receive(request)) as uploads:
            upload = await anext(uploads)
            if not isinstance(upload, Upload):
                raise upload[1]
            made = await asyncio.to_thread(_bound, entry, upload, self._parts.import_limits)
        added = await self._parts.characters.add(made.data, made.filename, persona_id)
        line = {"file": upload.filename, "state": added.state, **report_json(added.entry)}
        return web.json_response({"data": [line]})

    async def _add(
        self, upload: Upload, replace_id: str | None = None
    ) -> tuple[str, dict[str, JsonValue]]:
        raw = await asyncio.to_thread(upload.path.read_bytes)
        added = await self._parts.characters.add(raw, upload.filename, replace_id)
        persona = added.entry.persona
        shown = persona_json(persona, own=self._parts.library.is_own(persona.id))
        return added.state, report_json(added.entry) | {"persona": shown}

    async def remove(self, request: web.Request) -> web.Response:
        """The character's file goes; its chats go on."""
        persona_id, erasure = _id(request), self._parts.erasure
        for known in await self._parts.characters.revisions.of(persona_id):
            owner = f"persona:{persona_id}@{known.revision}"
            await self._parts.history.erase(owner, erasure.names)
        await self._parts.characters.remove(persona_id)
        await erasure.carry_out()
        return web.Response(status=204)

    async def report(self, request: web.Request) -> web.Response:
        """What became of each field at the import."""
        return web.json_response(report_json(self._parts.library.entry(_id(request))))

    async def revisions(self, request: web.Request) -> web.Response:
        """Every state of the character that is kept, the newest first."""
        persona_id = _id(request)
        known = await self._parts.characters.revisions.of(persona_id)
        if not known:
            raise PersonaNotFound(persona_id)
        data = [{"revision": r.revision, "name": r.name, "added": r.added} for r in known]
        return web.json_response({"data": data})

    async def export(self, request: web.Request) -> web.Response:
        """The character as a file; `format` is one of `FORMS`, `revision` one that is kept."""
        persona_id, form = _id(request), request.query.get("format", "v3")
        if form not in FORMS:
            raise CardError("bad_format", f"format must be one of {', '.join(FORMS)}")
        entry = self._parts.library.entry(persona_id)
        persona = None
        if revision := request.query.get("revision"):
            persona = await self._parts.characters.at(persona_id, revision[:80])
        made = await asyncio.to_thread(exported, entry, form, persona=persona)
        return web.Response(
            body=made.data,
            content_type=made.media_type,
            headers={
                "Content-Disposition": disposition(made.filename),
                "Content-Security-Policy": "default-src 'none'; sandbox",
                "Cache-Control": "no-cache",
            },
        )

    async def avatar(self, request: web.Request) -> web.Response:
        """The character's picture."""
        picture = await asyncio.to_thread(self._parts.library.avatar, _id(request))
        if picture is None:
            raise web.HTTPNotFound(text="this persona has no picture")
        # An SVG of anyone's card must not run as a page of ours, also when it is opened by itself.
        policy = "default-src 'none'; style-src 'unsafe-inline'; sandbox"
        return web.Response(
            body=picture.data,
            content_type=picture.media_type,
            headers={"Content-Security-Policy": policy, "Cache-Control": "no-cache"},
        )


def check_origin(request: web.Request, parts: Parts) -> None:
    """Pages of other origins may not write here. Raises `HTTPForbidden`."""
    host, allowed = request.headers["Host"], frozenset(parts.config.origins)
    if not origin_allowed(request.headers.get("Origin"), host, allowed):
        log.warning("origin_refused", origin=request.headers["Origin"][:100])
        message = "pages of this origin may not ask; see server.origins in docs/config.md"
        raise web.HTTPForbidden(text=message)


def refusal(error: CardError, *, data: list[JsonValue] | None = None) -> web.Response:
    """The answer for a file that is refused: 413 too much, 415 no kind we read, 422 not sound."""
    status = 413 if error.code in TOO_LARGE else 415 if error.code in UNSUPPORTED else 422
    status = {"shipped": 409, "unwritable": 503, "bad_format": 400}.get(error.code, status)
    body: dict[str, JsonValue] = {"error": error_json(error)}
    return web.json_response(body if data is None else body | {"data": data}, status=status)


def disposition(filename: str) -> str:
    """A header that saves the answer under this name, also one of any script (RFC 6266)."""
    from urllib.parse import quote

    plain = "".join(c if c.isascii() and (c.isalnum() or c in "-_.") else "_" for c in filename)
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(filename)}"


def persona_json(persona: Persona, *, own: bool) -> JsonValue:
    """One line of the list. `own` ones can be deleted."""
    avatar = f"/v1/personas/{persona.id}/avatar?{persona.revision}" if persona.avatar else None
    return {
        "id": persona.id,
        "revision": persona.revision,
        "name": persona.name,
        "tagline": persona.tagline,
        "greeting": next(iter(greetings(persona, user="You", conversation_id=None)), ""),
        "tags": list(persona.tags),
        "creator": persona.creator,
        "avatar": avatar,
        "own": own,
    }


def _bound(entry: Entry, upload: Upload, limits: ImportLimits) -> Exported:
    book = read_any(upload.path.read_bytes(), filename=upload.filename, limits=limits)
    if not isinstance(book, ImportedBook):
        raise CardError("not_a_lorebook", "the file is a character, not a lorebook")
    return bound(entry, book)


def _id(request: web.Request) -> str:
    return request.match_info["id"]


def error_json(error: CardError) -> dict[str, JsonValue]:
    """A refusal as an object."""
    return {"code": error.code, "message": error.message, "where": error.where}
