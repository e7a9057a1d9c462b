"""The chats that someone watches or that are speaking: their events, watchers and live reply."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from gateway.errors import ErrorCode, Refused
from gateway.ids import new_id
from gateway.lifecycle import TurnState, advance
from gateway.outbox import Outbox
from gateway.protocol import (
    ChatSnapshot,
    ChatUpdated,
    LiveReply,
    PersonaRef,
    utf16_len,
)

if TYPE_CHECKING:
    from gateway.codec import Frame
    from gateway.history import Chat, ChatOrigin, History, TurnRecord
    from gateway.lifecycle import Signal
    from gateway.protocol import ChatEvent, Place

__all__ = ["Chats", "LiveChat", "LiveTurn", "Watcher"]


class Watcher(Protocol):
    """Whoever wants a chat's events, such as a socket."""

    def deliver(self, frame: Frame) -> None:
        """Takes a frame; never blocks and never raises."""
        ...


class LiveTurn:
    """A turn that is being spoken: its state, and the text that was published."""

    def __init__(self, record: TurnRecord) -> None:
        self.record = record
        self.state = TurnState.ACCEPTED
        self.text = ""
        self.off = 0

    def signal(self, signal: Signal) -> None:
        """Moves the state. Raises `IllegalTransition`."""
        self.state = advance(self.state, signal)

    def reply(self) -> LiveReply:
        """What was published of the reply."""
        return LiveReply(
            turn=self.record.id, message=self.record.reply, text=self.text, off=self.off
        )

    def add(self, text: str) -> int:
        """Appends published text; returns the offset where it belongs, in UTF-16 units."""
        off = self.off
        self.text += text
        self.off += utf16_len(text)
        return off


class LiveChat:
    """One chat in memory. `accepting` is held while a turn is being accepted.

    `changes` are the latest requests that changed something of the chat.
    """

    def __init__(self, chat: Chat) -> None:
        self.chat = chat
        self.outbox = Outbox(new_id("e"))
        self.turn: LiveTurn | None = None
        self.accepting = asyncio.Lock()
        self.watchers: set[Watcher] = set()
        self.changes: deque[str] = deque(maxlen=256)

    @property
    def idle(self) -> bool:
        """Nobody watches and nothing is spoken."""
        return not self.watchers and self.turn is None and not self.accepting.locked()

    def publish(
        self, event: ChatEvent, asker: Watcher | None = None, re: str | None = None
    ) -> None:
        """Numbers the event and gives it to all watchers, to `asker` with its `re`."""
        numbered = self.outbox.append(event)
        for watcher in self.watchers - {asker}:
            watcher.deliver(numbered)
        if asker:
            asker.deliver(replace(numbered, re=re))

    def snapshot(self, re: str | None = None) -> ChatSnapshot:
        """The chat as of the last event."""
        chat, turn = self.chat, self.turn
        return ChatSnapshot(
            re=re,
            chat=chat.id,
            epoch=self.outbox.epoch,
            seq=self.outbox.seq,
            persona=PersonaRef(id=chat.persona_id, name=chat.persona_name),
            user=chat.user,
            about=chat.about,
            note=chat.note,
            backend=chat.backend,
            greetings=tuple(m.wire() for m in chat.greetings),
            greeting=chat.greeting,
            messages=tuple(
                m.wire() for m in chat.path() if turn is None or m.id != turn.record.reply
            ),
            live=turn.reply() if turn else None,
        )

    def updated(self) -> ChatUpdated:
        """What can be changed of the chat, as it is now."""
        chat = self.chat
        return ChatUpdated(
            chat=chat.id,
            user=chat.user,
            about=chat.about,
            note=chat.note,
            backend=chat.backend,
            greetings=tuple(m.wire() for m in chat.greetings),
            greeting=chat.greeting,
        )

    def join(self, watcher: Watcher, re: str, after: Place | None = None) -> None:
        """Adds a watcher and answers it: the events after `after`, or a snapshot.

        No events would be no answer, so then too it is a snapshot.
        """
        self.watchers.add(watcher)
        missed = self.outbox.after(after) if after else None
        if not missed:
            watcher.deliver(self.snapshot(re))
            return
        watcher.deliver(replace(missed[0], re=re))
        for event in missed[1:]:
            watcher.deliver(event)


class Chats:
    """Chats by id, read from the history when needed; idle ones are dropped beyond `keep`."""

    def __init__(self, history: History, keep: int = 256) -> None:
        self._history = history
        self._keep = keep
        self._chats: OrderedDict[str, LiveChat] = OrderedDict()
        self._loading = asyncio.Lock()

    async def add(self, chat: Chat, origin: ChatOrigin | None = None) -> LiveChat:
        """Stores a new chat. Raises `HistoryError`."""
        await self._history.create(chat, origin)
        return self._remember(chat)

    async def get(self, chat_id: str) -> LiveChat:
        """Raises `Refused` (`unknown_chat`) and `HistoryError`."""
        async with self._loading:
            if chat_id not in self._chats:
                chat = await self._history.load(chat_id)
                if chat is None:
                    raise Refused(ErrorCode.UNKNOWN_CHAT, f"no chat {chat_id!r}")
                return self._remember(chat)
        self._chats.move_to_end(chat_id)
        return self._chats[chat_id]

    def forget_watcher(self, watcher: Watcher) -> tuple[LiveChat, ...]:
        """Removes a watcher from every chat; those that it watched."""
        watched = tuple(live for live in self._chats.values() if watcher in live.watchers)
        for live in watched:
            live.watchers.discard(watcher)
        return watched

    def drop(self, chat_id: str) -> None:
        """Forgets a chat that is no more."""
        self._chats.pop(chat_id, None)

    def live(self) -> tuple[LiveChat, ...]:
        """All chats in memory."""
        return tuple(self._chats.values())

    def speaking(self) -> int:
        """How many replies are being spoken."""
        return sum(live.turn is not None for live in self._chats.values())

    def _remember(self, chat: Chat) -> LiveChat:
        live = self._chats[chat.id] = LiveChat(chat)
        spare = len(self._chats) - self._keep
        if spare > 0:
            idle = [c for c, kept in self._chats.items() if kept.idle and kept is not live]
            for chat_id in idle[:spare]:
                del self._chats[chat_id]
        return live
