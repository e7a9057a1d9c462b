"""What one socket has yet to send: bounded, and deltas that wait are merged. Pure."""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from typing import TYPE_CHECKING

from gateway.protocol import TurnDelta

if TYPE_CHECKING:
    from gateway.codec import Frame

__all__ = ["SendQueue"]


class SendQueue:
    """Frames in order. A delta that follows a waiting delta of the same reply joins it.

    `overflowed` becomes and stays true when more than `max_frames` frames or `max_chars`
    characters of deltas wait; the owner then closes the socket with 4006.
    """

    def __init__(self, max_frames: int = 256, max_chars: int = 256 * 1024) -> None:
        self._max_frames = max_frames
        self._max_chars = max_chars
        self._frames: deque[Frame] = deque()
        self._chars = 0
        self.overflowed = False

    def __len__(self) -> int:
        return len(self._frames)

    def push(self, frame: Frame) -> None:
        """Adds a frame, merging where it can. After an overflow frames are dropped."""
        if self.overflowed:
            return
        last = self._frames[-1] if self._frames else None
        if isinstance(frame, TurnDelta):
            self._chars += len(frame.text)
            if isinstance(last, TurnDelta) and last.turn == frame.turn:
                frame = replace(frame, off=last.off, text=last.text + frame.text)
                self._frames.pop()
        self._frames.append(frame)
        self.overflowed = len(self._frames) > self._max_frames or self._chars > self._max_chars

    def pop(self) -> Frame:
        """The frame to send next. Raises `IndexError` when there is none."""
        frame = self._frames.popleft()
        if isinstance(frame, TurnDelta):
            self._chars -= len(frame.text)
        return frame
