"""How many tokens a text takes, without starting a model: its tokenizer if it is prepared."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Counting", "counter", "estimate"]

_BYTES = 4


class Counting(NamedTuple):
    """A way to count; `says` names it for people."""

    count: Callable[[str], int]
    says: str


def estimate(text: str) -> int:
    """About the tokens of a text: a quarter of its UTF-8 bytes, which suits few languages well."""
    return -(-len(text.encode(errors="replace")) // _BYTES)


def counter(data: Path, model: str) -> Counting:
    """The count of `model`, a packaged one that was prepared in `data` or a folder, or an estimate.

    Imports the tokenizer's library only when there is a tokenizer.
    """
    made = data / "models"
    prepared = sorted(made.iterdir()) if made.is_dir() else []
    named = [path for path in prepared if path.name.startswith(f"{model}-")]
    folders = (path for path in (Path(model), *named) if (path / "tokenizer.json").is_file())
    folder = next(folders, None)
    if folder is None:
        says = "estimated from their length; `greenroom prepare` brings the model's own count"
        return Counting(estimate, says)
    from backends.local.errors import ModelError
    from backends.local.tokenizer import Tokenizer

    try:
        tokenizer = Tokenizer.load(folder)
    except ModelError as error:
        return Counting(estimate, f"estimated from their length, as {error}")
    return Counting(lambda text: len(tokenizer.encode_text(text)), f"counted by {folder.name}")
