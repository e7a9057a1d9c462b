"""The events of one chat, numbered and kept for a while, so that a socket can resume. Pure."""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from gateway.protocol import ChatEvent

if TYPE_CHECKING:
    from gateway.protocol import Place

__all__ = ["Outbox"]

E = TypeVar("E", bound=ChatEvent)


class Outbox:
    """Numbers events from 1 and keeps the last `keep` of them.

    `epoch` names this run of numbers: another outbox of the same chat has another one.
    """

    def __init__(self, epoch: str, keep: int = 2048) -> None:
        self.epoch = epoch
        self.seq = 0
        self._kept: deque[ChatEvent] = deque(maxlen=keep)

    def append(self, event: E) -> E:
        """The event with its number; it is kept."""
        self.seq += 1
        numbered = replace(event, epoch=self.epoch, seq=self.seq)
        self._kept.append(numbered)
        return numbered

    def after(self, place: Place) -> tuple[ChatEvent, ...] | None:
        """Every event after `place`, in order; None when some are gone or it is not ours."""
        oldest = self.seq - len(self._kept)
        if place.epoch != self.epoch or not oldest <= place.seq <= self.seq:
            return None
        return tuple(self._kept)[place.seq - oldest :]
