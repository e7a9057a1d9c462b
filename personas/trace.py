"""What lore did at a turn, for a person who asks why the character said that."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Trace", "TraceEntry"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceEntry:
    """One entry of a lorebook at a turn: in the prompt, or cut.

    `cause` is a `personas.lorebook.Cause`, or `earlier`: it came in at an earlier turn and still
    stands there. `source` is where `key` was found: the id of a message or of an entry, or the name
    of a field of the persona. `place` is `scene`, `tail`, or `before` or `after` the message of the
    id `message`; empty when the entry is `cut`, which says why. `tokens` is what it costs.
    """

    id: str
    name: str
    cause: str
    key: str = ""
    source: str = ""
    place: str = ""
    message: str = ""
    tokens: int = 0
    cut: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """One prompt: its lore, its tokens and what was left out of it.

    `tokens` of the prompt's `room` are taken, `lore_tokens` of them by lore. `left_out` messages
    of the history were trimmed; `examples` says whether the example dialogue is in. `breaks` names
    what ended the prefix that this prompt and the one before have in common: `tail` (instructions
    after the history), `trim`, `examples`; empty: nothing did.
    """

    conversation: str
    persona: str
    message: str = ""
    room: int = 0
    tokens: int = 0
    lore_tokens: int = 0
    left_out: int = 0
    examples: bool = True
    breaks: tuple[str, ...] = ()
    entries: tuple[TraceEntry, ...] = ()
