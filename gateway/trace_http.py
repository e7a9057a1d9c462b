"""Why the character said that: the lore and the tokens of a chat's last prompt, over HTTP."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from aiohttp import web

from backends.api import Role
from backends.errors import BackendError
from gateway.errors import ErrorCode, Refused
from gateway.failures import describe
from personas.persona import PersonaNotFound, PromptTooLong

if TYPE_CHECKING:
    from gateway.http import Parts
    from personas.conversation import Conversation
    from personas.trace import Trace

__all__ = ["TraceRoutes", "asked"]


class TraceRoutes:
    """`GET /v1/chats/{id}/trace`: nothing of it is stored, it is worked out from the chat again."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    def routes(self) -> list[web.RouteDef]:
        """The path of the trace."""
        return [web.get("/v1/chats/{id}/trace", self.trace)]

    async def trace(self, request: web.Request) -> web.Response:
        """The trace of the prompt that the last reply answered, or that the next one will."""
        try:
            found = await self._trace(request.match_info["id"])
        except Refused as refused:
            status = 404 if refused.code is ErrorCode.UNKNOWN_CHAT else 422
            return _refusal(refused, status)
        except PersonaNotFound as error:
            return _refusal(error, 404)
        except PromptTooLong as error:
            return _refusal(error, 422)
        except BackendError as error:
            return _refusal(error, 503)
        return web.json_response(asdict(found), headers={"Cache-Control": "no-store"})

    async def _trace(self, chat_id: str) -> Trace:
        parts = self._parts
        chat = (await parts.chats.get(chat_id)).chat
        persona = await parts.characters.of_chat(chat.persona_id, chat.persona_revision)
        standby = parts.ensemble.of(chat.backend)
        rendered = await parts.composer.render(
            standby, persona, asked(chat.conversation()), "trace"
        )
        return rendered.trace


def asked(conversation: Conversation) -> Conversation:
    """The conversation as it was when its last reply was asked for."""
    path = conversation.path()
    if len(path) > 1 and path[-1].role is Role.ASSISTANT:
        return conversation.rewind(path[-2].id)
    return conversation


def _refusal(error: Exception, status: int) -> web.Response:
    told = describe(error)
    body = {"code": told.code, "message": told.message, "where": ""}
    return web.json_response({"error": body}, status=status)
