"""What suits a model: its prompt form and how to sample from it. No torch.

A packaged model names its profile; for any other folder it is found out from the folder's own
chat template. The engine has no `if` on a model.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import structlog

from backends.api import Sampling
from backends.local.errors import WeightsDamaged
from backends.local.template import ChatML, GemmaTurns, Llama3, Transcript

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from backends.local.template import Template
    from backends.local.tokenizer import Tokenizer

__all__ = ["PROFILES", "Profile", "detect_profile"]

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Profile:
    """A prompt form and the sampling that suits the model behind it."""

    name: str
    template: Callable[[Tokenizer], Template]
    sampling: Sampling = field(default_factory=Sampling)


# A small base model repeats itself and wanders: cooler than a large one, with a light penalty.
_SMALL_BASE = Sampling(
    temperature=0.75, top_p=0.9, min_p=0.05, repetition_penalty=1.1, max_tokens=120
)
_SMALL_CHAT = Sampling(
    temperature=0.7, top_p=0.9, min_p=0.05, repetition_penalty=1.1, max_tokens=160
)
_CHAT = Sampling(temperature=0.8, top_p=0.95, min_p=0.05)

PROFILES: dict[str, Profile] = {
    profile.name: profile
    for profile in (
        Profile("gemma-base", Transcript, _SMALL_BASE),
        Profile("smollm2-instruct", ChatML, _SMALL_CHAT),
        Profile("chatml", ChatML, _CHAT),
        Profile("gemma-turns", GemmaTurns, _CHAT),
        Profile("llama3", Llama3, _CHAT),
        Profile("transcript", Transcript, _SMALL_BASE),
    )
}

_MARKS = (
    ("<|im_start|>", "chatml"),
    ("<start_of_turn>", "gemma-turns"),
    ("<|start_header_id|>", "llama3"),
)


def detect_profile(folder: Path, tokenizer: Tokenizer) -> Profile:
    """The profile for a folder's chat template; the transcript form when it has none we know."""
    template = _chat_template(folder)
    for mark, name in _MARKS:
        if mark in template and tokenizer.has_control(mark):
            return PROFILES[name]
    if template:
        _log.warning("template_unknown", folder=str(folder), used="transcript")
    return PROFILES["transcript"]


def _chat_template(folder: Path) -> str:
    beside, config = folder / "chat_template.jinja", folder / "tokenizer_config.json"
    try:
        if beside.is_file():
            return beside.read_text()
        if not config.is_file():
            return ""
        found = json.loads(config.read_text()).get("chat_template")
    except (OSError, ValueError, AttributeError):
        raise WeightsDamaged(f"{folder}: the chat template cannot be read") from None
    if isinstance(found, list):  # several named templates; the one called default counts
        named = {entry.get("name"): entry.get("template") for entry in found}
        found = named.get("default")
    return found if isinstance(found, str) else ""
