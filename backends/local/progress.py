"""Showing how far a long step is."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from typing import TextIO

__all__ = ["NoProgress", "Progress", "TerminalProgress"]

_WIDTH = 30
_REDRAW_S = 0.1


class Progress(Protocol):
    """Told again and again how much of a step is done; the last call has `done == total`."""

    def __call__(self, label: str, done: int, total: int) -> None: ...


class NoProgress:
    """Shows nothing."""

    def __call__(self, label: str, done: int, total: int) -> None:
        return


class TerminalProgress:
    """A bar on a terminal; elsewhere one line when a step begins and one when it is done."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._bar = self._stream.isatty()
        self._label = ""
        self._begun = self._drawn = 0.0

    def __call__(self, label: str, done: int, total: int) -> None:
        now = time.monotonic()
        if label != self._label:
            self._label, self._begun, self._drawn = label, now, 0.0
            if not self._bar:
                self._write(f"{label} ...\n")
        finished = done >= total
        if self._bar and (finished or now - self._drawn >= _REDRAW_S):
            self._drawn = now
            share = done / total if total else 1.0
            filled = "#" * round(share * _WIDTH)
            self._write(f"\r{label} [{filled:<{_WIDTH}}] {share:4.0%}")
        if finished:
            took = f"{now - self._begun:.1f} s"
            self._write(f" {took}\n" if self._bar else f"{label}: done in {took}\n")
            self._label = ""

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()
