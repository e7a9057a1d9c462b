"""What the gateway knows and an engine cannot: who opens a chat, types, and leaves.

People pause for half a minute between messages, and longer before they come back; a restore from
disk takes milliseconds. So whoever opens a chat or begins to type finds its KV near, and whoever
leaves makes room first. Hints only: nothing here fails a chat, and nothing waits for it.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import structlog

from gateway.composing import TENANT

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable

    from gateway.characters import Characters
    from gateway.chats import LiveChat
    from gateway.composing import Composer
    from gateway.ensemble import Ensemble

__all__ = ["Presence"]

log = structlog.get_logger()

EVERY_SECONDS = 5.0
"""How often one chat is prefetched at the most."""
GRACE_SECONDS = 20.0
"""How long a chat may be without a watcher: a page that is loaded anew, a train in a tunnel."""
REMEMBERED = 1024


class Presence:
    """Tells the backend of a chat when to get ready and when to let go."""

    def __init__(
        self,
        characters: Characters,
        ensemble: Ensemble,
        composer: Composer,
        *,
        every: float = EVERY_SECONDS,
        grace: float = GRACE_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._characters = characters
        self._ensemble = ensemble
        self._composer = composer
        self._every = every
        self._grace = grace
        self._clock = clock
        self._seen: dict[str, float] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def near(self, live: LiveChat) -> None:
        """Somebody opened this chat, or types in it."""
        now = self._clock()
        chat = live.chat.id
        if live.turn is not None or now - self._seen.get(chat, -self._every) < self._every:
            return
        self._seen.pop(chat, None)
        self._seen[chat] = now
        if len(self._seen) > REMEMBERED:
            del self._seen[next(iter(self._seen))]
        self._spawn(self._prefetch(live))

    def left(self, chats: Iterable[LiveChat]) -> None:
        """Somebody stopped watching these."""
        for live in chats:
            if not live.watchers:
                self._spawn(self._retire(live))

    async def aclose(self) -> None:
        """Drops what was not told yet. Idempotent."""
        for task in tuple(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _prefetch(self, live: LiveChat) -> None:
        chat = live.chat
        standby = self._ensemble.of(chat.backend)
        if standby.capabilities is None:
            return  # it loads; the turn will wait for it anyway
        try:
            persona = await self._characters.of_chat(chat.persona_id, chat.persona_revision)
            conversation = chat.conversation()
            turn = await self._composer.compose(standby, persona, conversation, "prefetch")
            await standby.backend.prefetch(turn)
        except Exception as error:
            # A hint that cannot be given says nothing about the chat: its turn will.
            log.debug("prefetch_skipped", conversation=chat.id, problem=type(error).__name__)

    async def _retire(self, live: LiveChat) -> None:
        await asyncio.sleep(self._grace)
        if live.watchers or live.turn is not None:
            return
        standby = self._ensemble.of(live.chat.backend)
        if standby.capabilities is not None:
            self._seen.pop(live.chat.id, None)
            await standby.backend.retire(TENANT, live.chat.id)

    def _spawn(self, work: Coroutine[object, object, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
