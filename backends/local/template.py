"""How a turn becomes token ids: chat templates and the transcript form. No torch.

Control tokens come from the template alone; every string of a turn goes through
`Tokenizer.encode_text`. Each piece is encoded by itself, so that the ids of turn n followed by the
ids of its reply are a prefix of the ids of turn n + 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from backends.api import Role

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from backends.api import Message, Turn
    from backends.local.tokenizer import Tokenizer

__all__ = ["ChatML", "GemmaTurns", "Llama3", "Prompt", "Template", "Transcript"]


@dataclass(frozen=True, slots=True)
class Prompt:
    """A turn as the engine runs it.

    `boundaries[i]` is the length of the prompt after message i. `stops` end the reply and are no
    part of it; so do `end_ids`, which stand for nothing in the text. `not_first_ids` may not be
    sampled first, so that a reply is never empty.
    """

    ids: tuple[int, ...]
    boundaries: tuple[int, ...]
    stops: tuple[str, ...]
    end_ids: frozenset[int]
    not_first_ids: frozenset[int]


class Template(Protocol):
    """One prompt form over one tokenizer."""

    def render(self, turn: Turn) -> Prompt:
        """The ids of the turn's prompt, ending where the reply begins."""
        ...

    def cost(self, text: str) -> int:
        """Tokens that a message with this text takes at most, with its share of the template.

        Bounds the name of a speaker at a dozen tokens.
        """
        ...


class _Pieces:
    """The prompt as it grows."""

    def __init__(self, tokenizer: Tokenizer, turn: Turn) -> None:
        self.ids: list[int] = []
        self.boundaries: list[int] = []
        self._tokenizer = tokenizer
        self._turn = turn

    def control(self, *token_ids: int) -> None:
        self.ids.extend(token_ids)

    def text(self, text: str) -> None:
        if text:
            self.ids.extend(self._tokenizer.encode_text(text))

    def message(self, index: int, text: str) -> None:
        """The text of message `index`: as the ids it was sampled as, where they still say it."""
        sampled = self._turn.sampled[index] if self._turn.sampled else None
        if sampled is not None and sampled.tokenizer == self._tokenizer.digest:
            said = b"".join(map(self._tokenizer.token_bytes, sampled.ids))
            controls = self._tokenizer.control_ids.isdisjoint(sampled.ids)
            if controls and said.decode(errors="replace").strip() == text.strip():
                self.ids.extend(sampled.ids)
                return
        self.text(text)

    def boundary(self) -> None:
        self.boundaries.append(len(self.ids))

    def prompt(self, stops: tuple[str, ...]) -> Prompt:
        return Prompt(
            ids=tuple(self.ids),
            boundaries=tuple(self.boundaries),
            stops=stops,
            end_ids=self._tokenizer.control_ids,  # a model that leaves the text has ended it
            not_first_ids=self._tokenizer.blank_ids,
        )


class ChatML:
    """`<|im_start|>role` newline, text, `<|im_end|>` newline (SmolLM2-Instruct and others)."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._start = tokenizer.control("<|im_start|>")
        self._end = tokenizer.control("<|im_end|>")

    def render(self, turn: Turn) -> Prompt:
        """See `Template.render`."""
        pieces = _Pieces(self._tokenizer, turn)
        for index, message in enumerate(turn.messages):
            self._open(pieces, message.role.value)
            pieces.message(index, message.text)
            pieces.control(self._end)
            pieces.text("\n")
            pieces.boundary()
        self._open(pieces, "assistant")
        return pieces.prompt(())

    def cost(self, text: str) -> int:
        """See `Template.cost`."""
        return len(self._tokenizer.encode_text(text)) + 8

    def _open(self, pieces: _Pieces, role: str) -> None:
        pieces.control(self._start)
        pieces.text(f"{role}\n")


class GemmaTurns:
    """`<start_of_turn>user` / `model` turns. Gemma has no system role.

    Leading system messages open the first user turn; a later one is a user turn of its own.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._start = tokenizer.control("<start_of_turn>")
        self._end = tokenizer.control("<end_of_turn>")

    def render(self, turn: Turn) -> Prompt:
        """See `Template.render`."""
        pieces = _Pieces(self._tokenizer, turn)
        if self._tokenizer.bos_id is not None:
            pieces.control(self._tokenizer.bos_id)
        leading = _leading_system(turn.messages)
        open_user = False
        for index, message in enumerate(turn.messages):
            model = message.role is Role.ASSISTANT
            if open_user and model:  # the greeting speaks first
                self._close(pieces)
                open_user = False
            if not open_user:
                self._open(pieces, "model" if model else "user")
            pieces.message(index, message.text)
            open_user = index < leading
            if open_user:
                pieces.text("\n\n")
            else:
                self._close(pieces)
            pieces.boundary()
        if open_user:
            self._close(pieces)
        self._open(pieces, "model")
        return pieces.prompt(())

    def cost(self, text: str) -> int:
        """See `Template.cost`."""
        return len(self._tokenizer.encode_text(text)) + 8

    def _open(self, pieces: _Pieces, role: str) -> None:
        pieces.control(self._start)
        pieces.text(f"{role}\n")

    def _close(self, pieces: _Pieces) -> None:
        pieces.control(self._end)
        pieces.text("\n")


class Llama3:
    """`<|start_header_id|>role<|end_header_id|>`, blank line, text, `<|eot_id|>`."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._header = tokenizer.control("<|start_header_id|>")
        self._header_end = tokenizer.control("<|end_header_id|>")
        self._end = tokenizer.control("<|eot_id|>")

    def render(self, turn: Turn) -> Prompt:
        """See `Template.render`."""
        pieces = _Pieces(self._tokenizer, turn)
        if self._tokenizer.bos_id is not None:
            pieces.control(self._tokenizer.bos_id)
        for index, message in enumerate(turn.messages):
            self._open(pieces, message.role.value)
            pieces.message(index, message.text)
            pieces.control(self._end)
            pieces.boundary()
        self._open(pieces, "assistant")
        return pieces.prompt(())

    def cost(self, text: str) -> int:
        """See `Template.cost`."""
        return len(self._tokenizer.encode_text(text)) + 8

    def _open(self, pieces: _Pieces, role: str) -> None:
        pieces.control(self._header)
        pieces.text(role)
        pieces.control(self._header_end)
        pieces.text("\n\n")


class Transcript:
    """A script for a base model: prose that sets the scene, then one line a message.

    Newlines inside a message become spaces, so that nobody can forge a speaker's line; the line's
    end is the reply's end.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def render(self, turn: Turn) -> Prompt:
        """See `Template.render`."""
        pieces = _Pieces(self._tokenizer, turn)
        if self._tokenizer.starts_with_bos and self._tokenizer.bos_id is not None:
            pieces.control(self._tokenizer.bos_id)
        leading = _leading_system(turn.messages)
        for index, message in enumerate(turn.messages):
            if index < leading:
                pieces.text(message.text.strip())
                pieces.text("\n\n")
            elif message.role is Role.SYSTEM:
                pieces.text(f"({_one_line(message.text)})")
                pieces.text("\n")
            else:
                pieces.text(f"{_speaker(message, turn)}:")
                pieces.message(index, f" {_one_line(message.text)}")
                pieces.text("\n")
            pieces.boundary()
        pieces.text(f"{_one_line(turn.speaker)}:")
        return pieces.prompt(("\n",))

    def cost(self, text: str) -> int:
        """See `Template.cost`."""
        forms = (f" {_one_line(text)}", text)
        return max(len(self._tokenizer.encode_text(form)) for form in forms) + 16


def _leading_system(messages: Sequence[Message]) -> int:
    """How many messages before the first that is not a system message."""
    return next((i for i, m in enumerate(messages) if m.role is not Role.SYSTEM), len(messages))


def _one_line(text: str) -> str:
    return " ".join(_lines(text))


def _lines(text: str) -> Iterator[str]:
    """The lines of a text without their blank ends; empty ones left out."""
    return (line.strip() for line in text.splitlines() if line.strip())


def _speaker(message: Message, turn: Turn) -> str:
    name = _one_line(message.name or "")
    if name:
        return name
    return _one_line(turn.speaker) if message.role is Role.ASSISTANT else "User"
