"""Cards imported a second on one core, and what lore and a prompt cost at a turn.

A typical card is a PNG of about 300 KB, 400 × 600 pixels, with a lorebook of 30 entries; the same
cards also as JSON. `import_per_s` is the reader alone over the PNGs, `import_json_per_s` over the
JSON. `import_library_per_s` is `greenroom cards import FOLDER`, the files kept in the library;
`store_per_s` is a server that reads that library at its start and stores every revision in its
database; `avatar_ms` is what an avatar costs when a page first shows it, decoded and made anew.
`import_everything_per_s` is all three, one after the other. Processor time of all threads counts.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import random
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.prompts import conversations, lore_scan, render_180, topics
from gateway import cli
from gateway.characters import Characters
from gateway.composing import Composer
from gateway.sql_characters import SqlRevisions
from gateway.sql_history import SqlHistory
from gateway.standby import Standby
from gateway.testing import PromptedBackend
from personas import png
from personas.importer import read_any
from personas.library import Library

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from personas.persona import JsonValue

SIZE = (400, 600)
ENTRIES = 30


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cards", type=int, default=200, help="cards to import (default 200)")


async def run(args: argparse.Namespace) -> dict[str, object]:
    """Cards a second, milliseconds a turn, and texts that were tokenized though they are known."""
    count = 8 if args.smoke else args.cards
    texts = [card(number) for number in range(count)]
    picture = photo()
    cards = [png.with_texts(picture, embedded(text)) for text in texts]
    return {
        "import_per_s": read(cards, "card.png"),
        "import_json_per_s": read(texts, "card.json"),
        **await bring(cards),
        "lore_scan_ms": lore_scan(400 if args.smoke else 4000),
        "render_ms": render_180()["render_180_ms"],
        **await tokenized(10 if args.smoke else 90),
        "cards": count,
        "card_kb": round(statistics.mean(map(len, cards)) / 1024),
        "json_kb": round(statistics.mean(map(len, texts)) / 1024),
    }


def card(number: int) -> bytes:
    """A V3 card as SillyTavern writes it, with texts of the usual lengths."""
    draw = random.Random(number)
    words = [
        "".join(draw.choices("abcdefghijklmnoprstuvwy", k=draw.randint(3, 9))) for _ in range(600)
    ]

    def text(length: int) -> str:
        return " ".join(draw.choices(words, k=length))

    entries: list[JsonValue] = [
        {
            "id": at,
            "keys": draw.sample(words, 3),
            "secondary_keys": [],
            "comment": text(3),
            "content": text(60),
            "constant": at == 0,
            "selective": False,
            "insertion_order": 100,
            "enabled": True,
            "position": "before_char",
            "use_regex": False,
            "extensions": {
                "position": 0,
                "exclude_recursion": False,
                "display_index": at,
                "probability": 100,
                "useProbability": True,
                "depth": 4,
                "selectiveLogic": 0,
                "group": "",
                "group_override": False,
                "group_weight": 100,
                "prevent_recursion": False,
                "delay_until_recursion": False,
                "scan_depth": None,
                "match_whole_words": None,
                "use_group_scoring": False,
                "case_sensitive": None,
                "automation_id": "",
                "role": 0,
                "vectorized": False,
                "sticky": 0,
                "cooldown": 0,
                "delay": 0,
            },
        }
        for at in range(ENTRIES)
    ]
    data: dict[str, JsonValue] = {
        "name": f"Person {number}",
        "description": text(400),
        "personality": text(40),
        "scenario": text(60),
        "first_mes": text(200),
        "mes_example": f"<START>\n{{{{user}}}}: {text(30)}\n{{{{char}}}}: {text(60)}",
        "creator_notes": text(60),
        "system_prompt": "",
        "post_history_instructions": "",
        "alternate_greetings": [text(200), text(200)],
        "tags": draw.sample(words, 8),
        "creator": "somebody",
        "character_version": "1",
        "group_only_greetings": [],
        "extensions": {"talkativeness": "0.5", "fav": False, "world": ""},
        "character_book": {"name": "places", "extensions": {}, "entries": entries},
    }
    return json.dumps({"spec": "chara_card_v3", "spec_version": "3.0", "data": data}).encode()


def embedded(text: bytes) -> list[tuple[str, bytes]]:
    """The two texts that a PNG of SillyTavern has."""
    packed = base64.b64encode(text)
    return [("chara", packed), ("ccv3", packed)]


def photo() -> bytes:
    """A picture that compresses as a painted one does: soft colours and a little grain."""
    import numpy as np
    import PIL.Image

    draw = np.random.default_rng(1)
    soft = PIL.Image.fromarray(draw.integers(0, 255, (9, 6, 3), dtype=np.uint8))
    wide = np.asarray(soft.resize(SIZE, PIL.Image.Resampling.BICUBIC)).astype(np.int16)
    grain = draw.integers(0, 2, wide.shape)
    made = PIL.Image.fromarray((wide + grain).clip(0, 255).astype(np.uint8))
    out = io.BytesIO()
    made.save(out, "PNG")
    return out.getvalue()


def read(files: Sequence[bytes], name: str) -> float:
    """Files a second of the reader alone."""
    took = []
    for raw in files:
        began = time.process_time()
        read_any(raw, filename=name, with_avatar=False)
        took.append(time.process_time() - began)
    return round(len(files) / sum(took), 1)


async def bring(cards: Sequence[bytes]) -> dict[str, float]:
    """The command over a folder of cards; then a server's library, database and avatars."""
    with tempfile.TemporaryDirectory() as made:
        source, data = laid(cards, Path(made, "cards")), Path(made, "data")
        began = time.process_time()
        with contextlib.redirect_stdout(io.StringIO()):
            code = cli.main(["cards", "import", "--data", str(data), str(source)])
        commanded = time.process_time()
        assert code == 0, "a card was refused"
        history = await SqlHistory.open(data / "conversations.db")
        opened = time.process_time()
        try:
            library = Library.open(data / "personas")
            await Characters(library, SqlRevisions(history)).open()
            stored = time.process_time()
            brought = [persona.id for persona in library.list() if library.is_own(persona.id)]
            assert len(brought) == len(cards), "a card was lost"
            for id in brought:
                assert library.avatar(id) is not None, "an avatar was lost"
            shown = time.process_time()
        finally:
            await history.aclose()
    count, command_s, server_s = len(cards), commanded - began, stored - opened
    return {
        "import_library_per_s": round(count / command_s, 1),
        "store_per_s": round(count / server_s, 1),
        "avatar_ms": round((shown - stored) / count * 1e3, 2),
        "import_everything_per_s": round(count / (command_s + server_s + shown - stored), 1),
    }


def laid(cards: Sequence[bytes], folder: Path) -> Path:
    """A folder of these cards."""
    folder.mkdir()
    for number, raw in enumerate(cards):
        (folder / f"{number}.png").write_bytes(raw)
    return folder


class Counter(PromptedBackend):
    """Remembers every text that it was asked to count."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    async def count(self, texts: Sequence[str]) -> tuple[int, ...]:
        self.asked += texts
        return await super().count(texts)


async def tokenized(turns: int) -> dict[str, float]:
    """A chat turn by turn: texts counted that are not new in the prompt, and counted a turn."""
    persona = Library.shipped().list()[0]
    persona = replace(persona, lore=(*persona.lore, topics()))
    backend = Counter()
    standby = Standby(backend)
    composer = Composer(sampling=lambda suits: suits, ready_seconds=5)
    again, asked, before = 0, [], set[str]()
    try:
        for number, chat in enumerate(conversations(persona, turns)):
            backend.asked.clear()
            turn = await composer.compose(standby, persona, chat, f"t{number}")
            now = {message.text for message in turn.messages}
            if number:
                again += sum(text not in now - before for text in backend.asked)
                asked.append(len(backend.asked))
            before |= now
    finally:
        await standby.aclose()
    return {"tokenized_again": again, "tokenized_a_turn": round(statistics.mean(asked), 2)}
