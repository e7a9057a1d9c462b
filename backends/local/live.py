"""What the engine holds for its turns: each turn's things, the pages promised, the step under way.

Only the engine's thread touches them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from backends.local.paged import pages_needed

if TYPE_CHECKING:
    from torch import Tensor

    from backends.local.generation import Generation
    from backends.local.paged import SequenceKV
    from backends.local.prefix import Prefix
    from kvstore.device import DeviceTier

__all__ = ["Flight", "Live", "Piece", "Promises"]


@dataclass(slots=True, eq=False)
class Live:
    """What one turn holds: freed as one."""

    generation: Generation
    kv: SequenceKV
    prefix: Prefix | None = None
    turning: list[int] = field(default_factory=list)
    """Where its prompt turns and is worth keeping, in tokens, in order; those not computed yet."""
    passed: list[int] = field(default_factory=list)
    """Those that a step has computed, or does, and that are not kept yet."""

    def begin(self, prefix: Prefix) -> None:
        """The turn runs from now on, with what the store has of it.

        Its turning points are the end of what the persona alone says, where every new chat with it
        begins, and the last message boundary, where a regenerated or edited turn does.
        """
        self.prefix = prefix
        prompt_len = self.generation.request.prompt_len
        inside = [b for b in self.generation.boundaries if b < prompt_len]
        self.turning = sorted({prefix.whose.shared, *inside[-1:]})

    def reaches(self, end: int) -> bool:
        """The tokens up to `end` are being computed: whether turning points were passed thereby."""
        restored_len = self.generation.request.restored_len
        while self.turning and self.turning[0] <= end:
            boundary = self.turning.pop(0)
            if boundary > restored_len:
                self.passed.append(boundary)
        return bool(self.passed)


class Piece(NamedTuple):
    """One turn's part of a step: tokens [start, end) of its request, and guesses behind them."""

    live: Live
    start: int
    end: int
    guesses: list[int]


@dataclass(frozen=True, slots=True)
class Flight:
    """A step that was launched: its parts, their logits in order, the second it began."""

    pieces: list[Piece]
    logits: Tensor
    began: float

    @property
    def token_count(self) -> int:
        return sum(piece.end - piece.start for piece in self.pieces)


class Promises:
    """Pages of the device that running turns may come to hold, none promised twice."""

    def __init__(self, device: DeviceTier, step_tokens: int) -> None:
        self._device = device
        self._step_tokens = step_tokens
        self._promised: dict[int, list[int]] = {}
        self._left = [device.size(group.id) for group in device.layout.groups]

    def make(self, id: int, tokens: int) -> bool:
        """Promises turn `id` what a sequence of `tokens` takes; False when it is not to be had."""
        layout = self._device.layout
        asked = [
            min(
                # One more for the copy of a shared page that is written behind.
                pages_needed(group, tokens, self._step_tokens, layout.block_tokens) + 1,
                self._device.size(group.id),
            )
            for group in layout.groups
        ]
        if any(pages > left for pages, left in zip(asked, self._left, strict=True)):
            return False
        self._promised[id] = asked
        self._left = [left - pages for pages, left in zip(asked, self._left, strict=True)]
        return True

    def end(self, id: int) -> None:
        """The turn holds nothing more; one without a promise is fine."""
        given = self._promised.pop(id, None)
        if given is not None:
            self._left = [left + pages for pages, left in zip(given, self._left, strict=True)]
