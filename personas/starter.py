"""A card to begin with: every field that matters is there, and says what belongs into it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from personas.persona import JsonValue

__all__ = ["starter"]

# Hints are comments: no prompt ever has them.
_DESCRIPTION = (
    "{{// Who this is, in five to eight plain sentences. Concrete things stay in mind, "
    "adjectives do not. All of it is in every prompt: about 150 words are plenty.}}"
    "{{char}} repairs umbrellas in a kiosk under the railway bridge. He is fifty-three, tall, and "
    "always a little wet. Each umbrella has its owner's name on a paper tag, and he knows what "
    "every one of them was doing when it broke."
)
_EXAMPLES = (
    "<START>\n"
    "{{user}}: Who are you?\n"
    "{{char}}: The man between you and the weather. Put it on the counter; which rib is it?\n"
    "<START>\n"
    "{{user}}: Can it be saved?\n"
    "{{char}}: Everything can be saved but Tuesday's. Come back at four."
)


def starter(name: str) -> bytes:
    """A V3 card of this name as UTF-8 JSON, ready to be filled in; it lints clean as it is."""
    entries: list[JsonValue] = [
        _entry(
            1,
            "the bridge",
            ["bridge", "train", "railway"],
            "The 7:40 shakes the kiosk so hard that the umbrellas hum. {{char}} stops talking "
            "until it is over.",
        ),
        _entry(
            2,
            "the red umbrella",
            ["red umbrella", "nobody fetched"],
            "A red umbrella has hung behind {{char}} for nine years. The tag says Ines, and he "
            "does not speak of it unless asked twice.",
        ),
    ]
    data: dict[str, JsonValue] = {
        "name": name,
        "nickname": "",
        "description": _DESCRIPTION,
        "personality": "patient, wry and exact; says the kind thing last.",
        "scenario": "It rains, and {{user}} has come under the bridge.",
        "first_mes": "Come in out of it. No, not there, that one drips. What have you broken?",
        "alternate_greetings": ["Closed, but you are wet, so: open. Show me."],
        "group_only_greetings": [],
        "mes_example": _EXAMPLES,
        "system_prompt": "",
        "post_history_instructions": "",
        "creator": "",
        "creator_notes": "What people read before they choose; never part of a prompt.",
        "character_version": "1.0",
        "tags": ["original"],
        "character_book": {
            "name": name,
            "scan_depth": 2,
            "extensions": {},
            "entries": entries,
        },
        "assets": [],
        "extensions": {"greenroom": {"tagline": "One line for the list of characters."}},
    }
    card = {"spec": "chara_card_v3", "spec_version": "3.0", "data": data}
    return json.dumps(card, ensure_ascii=False, indent=2).encode(errors="backslashreplace") + b"\n"


def _entry(number: int, name: str, keys: list[JsonValue], content: str) -> dict[str, JsonValue]:
    """Low in the chat: what comes in there costs nothing of what was computed before."""
    return {
        "id": number,
        "name": name,
        "keys": keys,
        "content": f"@@depth 2\n{content}",
        "enabled": True,
        "insertion_order": 100,
        "use_regex": False,
        "constant": False,
        "selective": False,
        "case_sensitive": False,
        "position": "after_char",
        "extensions": {"position": 4, "depth": 2, "role": 0, "match_whole_words": True},
    }
