"""Runs the two Python libraries: one JSON object a line in, {id, library, path}; one out.

A process of its own, with bounds for memory and time: what we ask it to read was made to break
readers.
"""

from __future__ import annotations

import json
import resource
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

MEMORY = 4 << 30
SECONDS = 10


def tavern_card(path: Path) -> object:
    import tavern_card

    raw = path.read_bytes()
    parse = tavern_card.parse_png_card if raw.startswith(b"\x89PNG") else tavern_card.parse_card
    return parse(raw)


def aichar(path: Path) -> object:
    import aichar

    raw = path.read_bytes()
    if raw.startswith(b"\x89PNG"):
        found = aichar.load_character_card(raw)
    elif path.suffix == ".json":
        found = aichar.load_character_json(raw.decode())
    else:
        found = aichar.load_character_yaml(raw.decode())
    return {
        "data": {
            "name": found.name,
            "description": found.summary,
            "personality": found.personality,
            "scenario": found.scenario,
            "first_mes": found.greeting_message,
            "mes_example": found.example_messages,
        }
    }


LIBRARIES: dict[str, Callable[[Path], object]] = {"tavern-card": tavern_card, "aichar": aichar}


def main() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    for line in sys.stdin:
        asked = json.loads(line)
        signal.alarm(SECONDS)
        try:
            answer = {"ok": LIBRARIES[asked["library"]](Path(asked["path"]))}
        except BaseException as error:  # a panic of Rust is no Exception
            answer = {"error": type(error).__name__}
        signal.alarm(0)
        print(json.dumps({"id": asked["id"], asked["library"]: answer}), flush=True)


if __name__ == "__main__":
    main()
