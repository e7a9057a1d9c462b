"""The surface that OpenAI's clients speak: a persona is a model, and so is a raw backend.

    GET  /v1/models, /v1/models/{id}
    POST /v1/chat/completions              whole, or streamed as server-sent events

Nothing is stored: a client sends the whole conversation each time, and the KV store finds what it
has seen of it. A reply has one client and nobody else sees it, so it ends when the client leaves.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import structlog
from aiohttp import web

from backends.api import Finished, FinishReason, Role, TextDelta, Turn
from backends.errors import BackendError, BackendErrorCode
from gateway.auth import origin_allowed
from gateway.composing import TENANT, Composer
from gateway.errors import ErrorCode, Refused
from gateway.ids import new_id
from gateway.limits import check_live_turns
from gateway.openai_answer import COMMENT, Answer, event, failure_of
from gateway.openai_models import Voices
from gateway.openai_schema import BODY_BYTES, ParameterFault, RequestError, parse
from gateway.turns import deadline
from personas.conversation import ChatMessage, Conversation
from personas.prompt import greetings

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from types import TracebackType

    from backends.api import Message, Sampling
    from gateway.http import Parts
    from gateway.openai_answer import Failure
    from gateway.openai_models import Voice
    from gateway.openai_schema import ChatRequest
    from personas.persona import Persona

    Say = Callable[[str], None]

__all__ = ["routes"]

log = structlog.get_logger()

KEEP_ALIVE = 10.0
"""Seconds without text after which a stream sends a comment, for clients that give up early."""
LOOK = 0.2
"""Seconds between looks whether the client is still there."""
STUCK_AFTER = 30.0
"""Seconds that a client may take no more of a stream."""
GRACE = 1.0
"""Seconds that a reply may go on when the server is told to stop; aiohttp gives little more."""


def routes(parts: Parts, keep_alive: float = KEEP_ALIVE) -> list[web.RouteDef]:
    """The routes over the parts; owns nothing."""
    surface = _Surface(parts, keep_alive)
    return [
        web.get("/v1/models", surface.models),
        web.get("/v1/models/{id:.+}", surface.model),
        web.post("/v1/chat/completions", surface.complete),
    ]


class _Surface:
    """The handlers. `_live` counts replies that are being spoken."""

    def __init__(self, parts: Parts, keep_alive: float) -> None:
        self._parts = parts
        self._keep_alive = keep_alive
        self._voices = Voices(parts.library, parts.ensemble, int(time.time()))
        self._live = 0

    async def models(self, request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": self._voices.entries()})

    async def model(self, request: web.Request) -> web.Response:
        model = request.match_info["id"]
        try:
            return web.json_response(self._voices.entry(model, self._voices.find(model)))
        except RequestError as error:
            return _refusal(failure_of(error))

    async def complete(self, request: web.Request) -> web.StreamResponse:
        try:
            self._check_origin(request)
            asked = parse(await _body(request))
            voice = self._voices.find(asked.model)
            self._check_texts(asked, voice)
            self._admit()
        except (RequestError, Refused) as error:
            return _refusal(failure_of(error))
        answer = Answer(new_id("chatcmpl"), int(time.time()), asked.model, asked.include_usage)
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(turn=answer.id, model=asked.model)
        self._live += 1
        try:
            async with _Reply(
                request,
                lambda say: self._speak(asked, voice, answer, say),
                lambda: self._parts.turns.draining,
            ) as reply:
                if asked.stream:
                    return await self._stream(request, answer, reply)
                return await _whole(answer, reply)
        finally:
            self._live -= 1

    def _check_origin(self, request: web.Request) -> None:
        """A page of another site may not make a browser ask here; it needs no answer to do harm."""
        host, allowed = request.headers["Host"], frozenset(self._parts.config.origins)
        if not origin_allowed(request.headers.get("Origin"), host, allowed):
            log.warning("origin_refused", origin=request.headers["Origin"][:100])
            message = "pages of this origin may not ask; see server.origins in docs/config.md"
            raise RequestError(message, param=None, code="origin_refused")

    def _check_texts(self, asked: ChatRequest, voice: Voice) -> None:
        """What a person may say to a character on the page is the limit here too."""
        most = self._parts.config.text_chars
        for at, message in enumerate(asked.messages):
            if voice.persona is not None and len(message.text) > most:
                raise RequestError(
                    f"the message has {len(message.text)} characters; the limit is {most}",
                    param=f"messages[{at}].content",
                    code=ParameterFault.TOO_LONG,
                )
        if voice.persona is None and not asked.messages:
            raise RequestError("'messages' must not be empty", param="messages")

    def _admit(self) -> None:
        if self._parts.turns.draining:
            raise Refused(
                ErrorCode.UNAVAILABLE, "the server is stopping", retryable=True, retry_after=2.0
            )
        check_live_turns(self._parts.chats.speaking() + self._live, self._parts.config.live_turns)

    async def _speak(self, asked: ChatRequest, voice: Voice, answer: Answer, say: Say) -> Finished:
        """Says the reply. Raises what a turn raises."""
        if voice.persona is not None and all(m.role is not Role.USER for m in asked.messages):
            # The character speaks first, and what it says stands on its card.
            said = greetings(voice.persona, user=_user(asked), conversation_id=asked.scope)
            say(said[0] if said else "")
            return Finished(FinishReason.COMPLETE)
        async with deadline(self._parts.config.turn_seconds):
            turn = await self._turn(asked, voice, answer.id)
            stream = voice.standby.backend.stream(turn)
            async with contextlib.aclosing(stream):
                async for spoken in stream:
                    if isinstance(spoken, Finished):
                        usage = spoken.usage
                        log.info(
                            "completion_ended",
                            reason=spoken.reason.value,
                            prompt_tokens=usage.prompt_tokens,
                            cached_tokens=usage.cached_tokens,
                            completion_tokens=usage.completion_tokens,
                        )
                        return spoken
                    if isinstance(spoken, TextDelta):
                        say(spoken.text)
        raise BackendError(BackendErrorCode.CUT, "the reply ended without an end", retryable=True)

    async def _turn(self, asked: ChatRequest, voice: Voice, turn_id: str) -> Turn:
        composer = self._parts.composer
        try:
            model = await voice.standby.ready(composer.ready_seconds)
        except BackendError as error:
            # Whatever keeps it from starting is no fault of this request.
            raise BackendError(
                BackendErrorCode.UNAVAILABLE,
                error.message,
                retryable=error.retryable,
                retry_after=error.retry_after,
            ) from error

        def sampling(suits: Sampling) -> Sampling:
            return replace(composer.sampling(suits), **dict(asked.sampling))  # type: ignore[arg-type]

        if voice.persona is None:
            return Turn(
                id=turn_id,
                messages=asked.messages,
                speaker="Assistant",
                stable=len(asked.messages),
                sampling=sampling(model.sampling),
                tenant=TENANT,
                conversation=asked.scope,
            )

        def bounded(suits: Sampling) -> Sampling:
            # Clients ask for thousands of tokens by default; the conversation keeps its half.
            wanted = sampling(suits)
            most = model.context // 2 if "max_tokens" in asked.sampling else wanted.max_tokens
            return replace(wanted, max_tokens=min(wanted.max_tokens, most))

        supplement, conversation = _conversation(asked, voice.persona)
        return await Composer(bounded, composer.ready_seconds).compose(
            voice.standby, voice.persona, conversation, turn_id, supplement
        )

    async def _stream(
        self, request: web.Request, answer: Answer, reply: _Reply
    ) -> web.StreamResponse:
        """Waits for the first text, so that an early failure still has a status of its own."""
        text = await reply.next(self._keep_alive)
        if text is None and (failure := reply.failure()) is not None:
            return _refusal(failure)
        response = web.StreamResponse(
            headers={
                "Content-Type": "text/event-stream; charset=utf-8",
                "Cache-Control": "no-store",
            }
        )
        with contextlib.suppress(ConnectionError):  # of a client that left
            await response.prepare(request)
            await _send(request, response, answer.opening())
            while text is not None:
                await _send(request, response, answer.text(text) if text else COMMENT)
                text = await reply.next(self._keep_alive)
            failure = reply.failure()
            if failure is not None:
                await _send(request, response, event(failure.body()))
            else:
                await _send(request, response, b"".join(answer.ending(reply.finished())))
            await response.write_eof()
        return response


class _Reply:
    """A reply that is spoken in a task of its own, until it ends, or its client or server do."""

    def __init__(
        self,
        request: web.Request,
        work: Callable[[Say], Coroutine[object, object, Finished]],
        stopping: Callable[[], bool],
    ) -> None:
        self.texts: list[str] = []
        self._request = request
        self._stopping = stopping
        self._cut: Exception | None = None
        self._queue: asyncio.Queue[str | None] = asyncio.Queue()
        self._task = asyncio.create_task(work(self._say))
        self._task.add_done_callback(lambda _: self._queue.put_nowait(None))
        self._watch = asyncio.create_task(self._look())

    async def __aenter__(self) -> _Reply:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._watch.cancel()
        if self._cut is None:  # a second cancel would hurry the clean-up of the first
            self._task.cancel()
        await asyncio.wait({self._task, self._watch})
        if not self._task.cancelled():
            self._task.exception()  # whoever needs it has asked for it

    async def next(self, patience: float) -> str | None:
        """More text, "" when there was none for so many seconds, None at the end."""
        try:
            async with asyncio.timeout(patience):
                return await self._queue.get()
        except TimeoutError:
            return ""

    async def end(self) -> None:
        """Waits until nothing more is said."""
        await asyncio.wait({self._task})

    def failure(self) -> Failure | None:
        """What went wrong, after the end. Raises `ConnectionResetError` when the client left."""
        if isinstance(self._cut, ConnectionResetError):
            log.info("client_left")
            raise self._cut
        error: BaseException | None = self._cut
        if error is None:
            try:
                error = self._task.exception()
            except asyncio.CancelledError as cancelled:
                error = cancelled
        if error is None:
            return None
        failure = failure_of(error)
        log.info("completion_failed", status=failure.status, code=failure.code)
        return failure

    def finished(self) -> Finished:
        """How it ended, when nothing went wrong."""
        return self._task.result()

    def _say(self, text: str) -> None:
        if text:
            self.texts.append(text)
            self._queue.put_nowait(text)

    async def _look(self) -> None:
        # aiohttp tells a handler that does not write of a lost connection only by cancelling all
        # handlers of the server alike.
        while not self._task.done():
            transport = self._request.transport
            if transport is None or transport.is_closing():
                self._end(ConnectionResetError("the client left"))
                break
            if self._stopping():
                await asyncio.wait({self._task}, timeout=GRACE)
                message = "the server stopped during this reply"
                self._end(BackendError(BackendErrorCode.UNAVAILABLE, message, retryable=True))
                break
            await asyncio.wait({self._task}, timeout=LOOK)

    def _end(self, why: Exception) -> None:
        if self._task.cancel():
            self._cut = why


async def _whole(answer: Answer, reply: _Reply) -> web.Response:
    await reply.end()
    try:
        failure = reply.failure()
    except ConnectionResetError:
        return web.Response(status=499)  # nobody reads it
    if failure is not None:
        return _refusal(failure)
    return web.json_response(answer.whole("".join(reply.texts), reply.finished()))


async def _send(request: web.Request, response: web.StreamResponse, data: bytes) -> None:
    """Raises `ConnectionError` when the client is gone or takes no more."""
    try:
        async with asyncio.timeout(STUCK_AFTER):
            await response.write(data)
    except TimeoutError as error:
        if request.transport is not None:
            request.transport.abort()
        raise ConnectionResetError("the client takes no more") from error


async def _body(request: web.Request) -> bytes:
    """The body, without taking more than `BODY_BYTES` into memory."""
    body = bytearray()
    async for chunk in request.content.iter_any():
        body += chunk
        if len(body) > BODY_BYTES:
            message = f"the body is larger than {BODY_BYTES} bytes"
            raise RequestError(message, param=None, code="body_too_large")
    return bytes(body)


def _user(asked: ChatRequest) -> str:
    """The person's name: the first that a message of the user has."""
    return next((m.name for m in asked.messages if m.role is Role.USER and m.name), "You")


def _conversation(asked: ChatRequest, persona: Persona) -> tuple[str, Conversation]:
    """The client's own system prompt, and its messages as a conversation with the persona.

    System messages before the first other one are that prompt; later ones stay where they are.
    The greeting comes first unless the client sends what the character said first.
    """
    user, said = _user(asked), list(asked.messages)
    leading = next((i for i, m in enumerate(said) if m.role is not Role.SYSTEM), len(said))
    supplement = "\n\n".join(m.text.strip() for m in said[:leading] if m.text.strip())
    spoken: list[tuple[Role, str, str]] = []
    if said[leading].role is Role.USER:
        first = greetings(persona, user=user, conversation_id=asked.scope)[:1]
        spoken += [(Role.ASSISTANT, persona.speaks_as, text) for text in first]
    spoken += [(m.role, _speaker(m, persona, user), m.text) for m in said[leading:]]
    messages = tuple(
        ChatMessage(str(at), str(at - 1) if at else None, role, name, text)
        for at, (role, name, text) in enumerate(spoken)
    )
    head = messages[-1].id
    return supplement, Conversation(asked.scope, persona.id, persona.revision, user, messages, head)


def _speaker(message: Message, persona: Persona, user: str) -> str:
    unnamed = {Role.ASSISTANT: persona.speaks_as, Role.USER: user, Role.SYSTEM: ""}
    return message.name or unnamed[message.role]


def _refusal(failure: Failure) -> web.Response:
    return web.json_response(failure.body(), status=failure.status, headers=failure.headers())
