"""Sampled bytes in, text out: never half a character, never part of a stop string. Pure.

The law, for the bytes of a whole reply, however they were split into tokens:

1. decode as UTF-8; a malformed run becomes U+FFFD, an incomplete last character is dropped;
2. cut before the stop string that ends first (of those that end together, the longest). A stop
   string of whitespace alone counts only behind the first visible character;
3. strip leading whitespace.
"""

from __future__ import annotations

import codecs
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Detokenizer", "Kept"]


@dataclass(frozen=True, slots=True)
class Kept:
    """What of the sampled tokens the reply kept.

    The first `token_count` tokens lie wholly inside it and end with a whole character;
    `remainder` is the text behind them (a stop string cut through a token). Tokens of stripped
    leading whitespace count as inside: they are part of the prefix that was computed.
    """

    token_count: int
    remainder: str


class Detokenizer:
    """The text of one reply, as its tokens come. `stopped` turns true at a stop string."""

    def __init__(self, stops: Sequence[str] = ()) -> None:
        self._stops = tuple(stops)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._halved = False  # whether it holds the beginning of a character
        self._text = ""  # everything decoded, leading whitespace and stop string included
        self._visible_at: int | None = None  # where the first visible character is, once there
        self._sent_len = 0  # [0, sent_len) was given out or is leading whitespace
        self._cut_len: int | None = None  # the reply is text[:cut_len]
        # Per token: characters decoded behind it, and whether it left half a character.
        self._ends: list[tuple[int, bool]] = []

    @property
    def stopped(self) -> bool:
        return self._cut_len is not None

    def push(self, piece: bytes) -> str:
        """Takes one token's bytes; returns the text that is now certain. Not after a stop."""
        assert not self.stopped
        old_len = len(self._text)
        if piece.isascii() and not self._halved:  # nearly always
            self._text += piece.decode("ascii")
        else:
            self._text += self._decoder.decode(piece)
            self._halved = bool(self._decoder.getstate()[0])
        self._ends.append((len(self._text), self._halved))
        visible_at = self._visible_at
        if visible_at is None:
            visible_at = len(self._text) - len(self._text.lstrip())
            self._sent_len = visible_at
            if visible_at < len(self._text):
                self._visible_at = visible_at
        self._cut_len = self._find_stop(old_len, visible_at)
        if self._cut_len is not None:
            return self._give(self._cut_len)
        return self._give(len(self._text) - self._held_len())

    def finish(self) -> str:
        """Ends the reply; returns what was held back. Idempotent."""
        if self._cut_len is None:
            self._cut_len = len(self._text)
        return self._give(self._cut_len)

    def kept(self) -> Kept:
        """What the reply kept; after a stop or `finish`."""
        assert self._cut_len is not None
        count, end_len = 0, 0
        for i, (length, halved) in enumerate(self._ends):
            if length <= self._cut_len and not halved:
                count, end_len = i + 1, length
        return Kept(count, self._text[end_len : self._cut_len])

    def _give(self, to_len: int) -> str:
        text = self._text[self._sent_len : to_len]
        self._sent_len = max(self._sent_len, to_len)
        return text

    def _find_stop(self, old_len: int, visible_at: int) -> int | None:
        found: list[tuple[int, int]] = []  # (end, start)
        for stop in self._stops:
            search_from = max(0, old_len - len(stop) + 1)
            if stop.isspace():
                search_from = max(search_from, visible_at)
            start = self._text.find(stop, search_from)
            if start >= 0:
                found.append((start + len(stop), start))
        return min(found)[1] if found else None

    def _held_len(self) -> int:
        """The longest end of the text that may be the beginning of a stop string."""
        held_len = 0
        for stop in self._stops:
            for length in range(min(len(stop) - 1, len(self._text)), held_len, -1):
                if self._text.endswith(stop[:length]):
                    held_len = length
                    break
        return held_len
