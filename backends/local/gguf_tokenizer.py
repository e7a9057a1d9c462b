"""From a GGUF vocabulary to the `tokenizer.json` that the `tokenizers` library reads.

Two kinds: Gemma's SentencePiece BPE (byte fallback, merges recovered from the vocabulary) and
GPT-2 style byte-level BPE (merges listed). Token types: 3 is control, 4 is user-defined.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from backends.local.errors import UnsupportedModel

if TYPE_CHECKING:
    from backends.local.gguf import GGUFFile

__all__ = ["tokenizer_config", "tokenizer_json"]

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"

_CONTROL, _USER_DEFINED = 3, 4


def tokenizer_json(file: GGUFFile) -> dict[str, Json]:
    """The content of `tokenizer.json`. Raises `UnsupportedModel` for another kind."""
    kind = (file.text("tokenizer.ggml.model"), file.text("tokenizer.ggml.pre"))
    if kind == ("llama", "default"):
        return _sentencepiece(file)
    if kind == ("gpt2", "smollm"):
        return _byte_level(file)
    raise UnsupportedModel(f"{file.path}: tokenizer {kind[0]!r} ({kind[1]}) is not supported")


def tokenizer_config(file: GGUFFile) -> dict[str, Json]:
    """The content of `tokenizer_config.json`: names of the special tokens, chat template."""
    tokens = file.texts("tokenizer.ggml.tokens")
    config: dict[str, Json] = {"tokenizer_class": "PreTrainedTokenizerFast"}
    for name, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        if f"tokenizer.ggml.{key}_token_id" in file.metadata:
            config[f"{name}_token"] = tokens[file.count(f"tokenizer.ggml.{key}_token_id")]
    if "tokenizer.chat_template" in file.metadata:
        config["chat_template"] = file.text("tokenizer.chat_template")
    return config


def _sentencepiece(file: GGUFFile) -> dict[str, Json]:
    types = file.numbers("tokenizer.ggml.token_type")
    # Runs of spaces are stored as they look in text; the model sees them after normalisation.
    pieces = [
        piece.replace(" ", "▁") if not piece.strip(" ") else piece
        for piece in file.texts("tokenizer.ggml.tokens")
    ]
    skipped = {
        piece
        for piece, kind in zip(pieces, types, strict=True)
        if kind == _CONTROL or (kind == _USER_DEFINED and piece.strip("▁"))
    }
    added: list[Json] = [
        _added(token_id, piece, special=types[token_id] == _CONTROL or _is_placeholder(piece))
        for token_id, piece in enumerate(pieces)
        if piece in skipped
    ]
    bos = file.count("tokenizer.ggml.bos_token_id")
    bos_name = pieces[bos]
    return {
        "version": "1.0",
        "added_tokens": added,
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        "pre_tokenizer": {
            "type": "Split",
            "pattern": {"String": " "},
            "behavior": "MergedWithPrevious",
            "invert": False,
        },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [
                {"SpecialToken": {"id": bos_name, "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
            ],
            "pair": [
                {"SpecialToken": {"id": bos_name, "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
                {"Sequence": {"id": "B", "type_id": 1}},
            ],
            "special_tokens": {bos_name: {"id": bos_name, "ids": [bos], "tokens": [bos_name]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
            ],
        },
        "model": {
            "type": "BPE",
            "unk_token": pieces[file.count("tokenizer.ggml.unknown_token_id")],
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": {piece: token_id for token_id, piece in enumerate(pieces)},
            "merges": _merges(pieces, skipped),
        },
    }


def _is_placeholder(piece: str) -> bool:
    """Gemma marks `[multimodal]` as user-defined, but it stands for something that is no text."""
    return piece.startswith("[") and piece.endswith("]")


def _merges(pieces: list[str], skipped: set[str]) -> list[Json]:
    """Every way to make a piece of two others, best first: the order of the ids is the rank."""
    ids = {piece: token_id for token_id, piece in enumerate(pieces) if piece not in skipped}
    found: list[tuple[int, int, int, str, str]] = []
    for piece, token_id in ids.items():
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in ids and right in ids:
                found.append((token_id, -cut, cut - len(piece), left, right))
    found.sort()
    return [[left, right] for *_, left, right in found]


def _byte_level(file: GGUFFile) -> dict[str, Json]:
    tokens = file.texts("tokenizer.ggml.tokens")
    types = file.numbers("tokenizer.ggml.token_type")
    return {
        "version": "1.0",
        "added_tokens": [
            _added(token_id, token, special=kind == _CONTROL)
            for token_id, (token, kind) in enumerate(zip(tokens, types, strict=True))
            if kind in (_CONTROL, _USER_DEFINED)
        ],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Digits", "individual_digits": True},
                {
                    "type": "ByteLevel",
                    "add_prefix_space": False,
                    "trim_offsets": True,
                    "use_regex": True,
                },
            ],
        },
        "post_processor": None,
        "decoder": {
            "type": "ByteLevel",
            "add_prefix_space": True,
            "trim_offsets": True,
            "use_regex": True,
        },
        "model": {
            "type": "BPE",
            "unk_token": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": {token: token_id for token_id, token in enumerate(tokens)},
            "merges": [list(pair.split(" ")) for pair in file.texts("tokenizer.ggml.merges")],
        },
    }


def _added(token_id: int, content: str, *, special: bool) -> dict[str, Json]:
    return {
        "id": token_id,
        "content": content,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": special,
    }
