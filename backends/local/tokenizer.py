"""Text to token ids and back, over the `tokenizers` library.

Untrusted text and control tokens never meet: `encode_text` cannot give a control id, whatever the
text, and `control` is the only way to one. Templates join the two (see `backends.local.template`).
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import TYPE_CHECKING

import tokenizers
from tokenizers.pre_tokenizers import ByteLevel

from backends.local.errors import UnsupportedModel, WeightsDamaged, WeightsMissing

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Tokenizer"]

_MARKER = re.compile(r"<\|.*\|>|<(unused|reserved)_?\d+>|<(start|end)_of_\w+>|\[[A-Z_]+\]")
"""Added tokens written like this are control tokens even where a file does not say so."""
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


REMEMBERED = 8192
"""Texts whose ids are kept."""


class Tokenizer:
    """The vocabulary of one model.

    `control_ids` never come from text. `blank_ids` add nothing that can be seen: whitespace alone,
    or nothing, as all control tokens do. `eos_ids` end a reply by the model's own configuration.
    `starts_with_bos` says that the model expects `bos_id` before plain text. `digest` names the
    vocabulary: equal digests give equal ids.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        digest: str,
        bos_id: int | None = None,
        eos_ids: frozenset[int] = frozenset(),
    ) -> None:
        self._backend = backend
        self._known: dict[str, list[int]] = {}
        self._pieces: dict[int, bytes] = {}  # by id, of what has been said
        self.digest = digest
        self.bos_id = bos_id
        self.eos_ids = eos_ids
        self.vocab_size: int = backend.get_vocab_size(with_added_tokens=True)
        self.starts_with_bos = bos_id is not None and bos_id in backend.encode("").ids
        added = backend.get_added_tokens_decoder()
        controls = {
            token_id: token
            for token_id, token in added.items()
            if token.special or token_id in eos_ids or _MARKER.fullmatch(token.content)
        }
        self.control_ids = frozenset(controls)
        self._controls = {token.content: token_id for token_id, token in controls.items()}
        self._literal = {i: token.content for i, token in added.items() if i not in controls}
        plain = [token for token in controls.values() if not token.special]
        backend.add_special_tokens(
            [tokenizers.AddedToken(t.content, special=True, normalized=False) for t in plain]
        )
        backend.encode_special_tokens = True  # special tokens typed as text are text
        backend.no_truncation()
        backend.no_padding()
        # A byte-level decoder reads "Ġ" as a space; any other leaves it alone.
        self._alphabet: dict[str, int] | None = None
        if backend.decoder is not None and backend.decoder.decode(["Ġ"]) == " ":
            self._alphabet = _byte_alphabet()
        self.blank_ids = frozenset(
            i for i in range(self.vocab_size) if not self._read_piece(i).strip()
        )

    @classmethod
    def load(cls, folder: Path) -> Tokenizer:
        """Reads `tokenizer.json` and the special tokens of a Hugging Face folder.

        Raises `WeightsMissing` without that file, `WeightsDamaged` when it cannot be read.
        """
        path = folder / "tokenizer.json"
        try:
            raw = path.read_bytes()
        except OSError as error:
            raise WeightsMissing(f"{path}: {error.strerror}") from None
        try:
            backend = tokenizers.Tokenizer.from_buffer(raw)
        except Exception as error:  # the library raises bare Exception
            raise WeightsDamaged(f"{path}: {str(error).splitlines()[0]}") from None
        named = _read_json(folder / "tokenizer_config.json")
        eos: set[int] = set()
        for file in ("config.json", "generation_config.json"):
            value = _read_json(folder / file).get("eos_token_id")
            values = value if isinstance(value, list) else [value]
            eos.update(v for v in values if isinstance(v, int) and not isinstance(v, bool))
        eos_token = _token_id(backend, named.get("eos_token"))
        if eos_token is not None:
            eos.add(eos_token)
        return cls(
            backend,
            digest=hashlib.sha256(raw).hexdigest()[:32],
            bos_id=_token_id(backend, named.get("bos_token")),
            eos_ids=frozenset(eos),
        )

    def encode_text(self, text: str) -> list[int]:
        """The ids of untrusted text; never a control id, whatever it says.

        Remembered: a long chat's prompt is nearly all texts of the turn before.
        """
        known = self._known.get(text)
        if known is None:
            known = self._encode(text)
            self._known[text] = known
            while len(self._known) > REMEMBERED:
                self._known.pop(next(iter(self._known)), None)
        return list(known)

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self._backend.encode(text, add_special_tokens=False).ids
        if self.control_ids.isdisjoint(ids):
            return ids
        # A vocabulary whose merges, or unknown token, give a control token. Cut until none is left.
        if len(text) == 1:
            return [token_id for token_id in ids if token_id not in self.control_ids]
        middle = len(text) // 2
        return self._encode(text[:middle]) + self._encode(text[middle:])

    def control(self, name: str) -> int:
        """The id of a control token by its exact text. Raises `UnsupportedModel` without one."""
        if name not in self._controls:
            raise UnsupportedModel(f"this model's tokenizer has no control token {name!r}")
        return self._controls[name]

    @property
    def control_names(self) -> tuple[str, ...]:
        """The exact texts of all control tokens."""
        return tuple(self._controls)

    def has_control(self, name: str) -> bool:
        """Whether `control(name)` would find one."""
        return name in self._controls

    def token_bytes(self, token_id: int) -> bytes:
        """What a token adds to the text, in UTF-8 bytes, possibly part of a character.

        Empty for control tokens and for ids without a token (padding rows of the embedding).
        """
        piece = self._pieces.get(token_id)
        if piece is None:
            piece = self._pieces[token_id] = self._read_piece(token_id)
        return piece

    def _read_piece(self, token_id: int) -> bytes:
        if token_id in self.control_ids:
            return b""
        if token_id in self._literal:
            return self._literal[token_id].encode()
        piece = self._backend.id_to_token(token_id)
        if piece is None:
            return b""
        if self._alphabet is not None:
            return bytes(self._alphabet[char] for char in piece if char in self._alphabet)
        if byte := _BYTE.fullmatch(piece):
            return bytes([int(byte[1], 16)])
        return piece.replace("▁", " ").encode()


def _byte_alphabet() -> dict[str, int]:
    """The printable character that stands for each byte in byte-level vocabularies (GPT-2).

    Printable Latin-1 stands for itself; the other bytes follow from U+0100 in order.
    """
    itself = {b for b in range(256) if chr(b) in ByteLevel.alphabet()}
    others = [b for b in range(256) if b not in itself]
    return {chr(b): b for b in itself} | {chr(256 + i): b for i, b in enumerate(others)}


def _read_json(path: Path) -> dict[str, object]:
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError):
        raise WeightsDamaged(f"{path}: cannot be read as JSON") from None
    return content if isinstance(content, dict) else {}


def _token_id(backend: tokenizers.Tokenizer, token: object) -> int | None:
    """The id of a special token as `tokenizer_config.json` names it: a string or an object."""
    if isinstance(token, dict):
        token = token.get("content")
    found: int | None = backend.token_to_id(token) if isinstance(token, str) else None
    return found
