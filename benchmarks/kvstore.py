"""The KV store: restores beside plain copies, time to first token at turn 50, hits by pool size."""

from __future__ import annotations

import queue
import secrets
import shutil
import statistics
import threading
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from backends.api import Finished, Message, Role, Sampling, TextDelta, Turn
from backends.errors import BackendError
from backends.local.assembly import assemble
from backends.local.progress import NoProgress
from backends.local.settings import EngineSettings
from benchmarks.hit_rate import hit_rates
from benchmarks.restore import restore_ratios
from gateway.config import DataConfig

if TYPE_CHECKING:
    import argparse

    from backends.api import TurnEvent
    from backends.local.assembly import Assembled

PERSONA = (
    "Maren keeps the lighthouse at the end of the breakwater. She counts ships, mends nets for "
    "people who never thank her, and talks to the lamp when nobody is there. "
)
LINES = (
    "I walked down from the village before it was light, because I could not sleep.",
    "Tell me about the ship that did not answer, and what you did when it had gone past.",
    "There is a boy at the harbour who says that you drew the map of the shoals yourself.",
    "What would you take with you, if the sea came up to the third stair again this winter?",
)
NUMBERS = ("One:", "Two:", "Three:", "Four:", "Five:", "Six:", "Seven:")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="gemma-3-270m", help="packaged name or a folder")
    parser.add_argument(
        "--data", type=Path, default=DataConfig().folder / "bench", help="where weights and KV lie"
    )


async def run(args: argparse.Namespace) -> dict[str, object]:
    """Everything in one process, one after the other; see the keys of the result."""
    turns = 6 if args.smoke else 50
    tokens = 5600
    scratch = args.data / f"kv-{secrets.token_hex(4)}"
    settings = EngineSettings(
        data_dir=args.data, model=args.model, context=8192, device_bytes=1 << 30
    )
    try:
        speaker = _Speaker(assemble(replace(settings, data_dir=args.data), NoProgress()))
        try:
            spoken = _conversation(speaker, turns)
        finally:
            speaker.close()
        layout = speaker.assembled.layout
        whole = (
            2 * 2 * tokens * sum(len(group.layers) * _width(group.parts) for group in layout.groups)
        )
        held = sum(
            group.bytes_per_token * (tokens - layout.first_needed(group, tokens))
            for group in layout.groups
        )
        return {
            **restore_ratios(layout, scratch, tokens, 3 if args.smoke else 40),
            **spoken,
            "bytes_vs_allglobal_fp16": round(whole / held, 2),
            "bytes_per_conversation": held,
            "hit_rate_by_pool": hit_rates(
                sessions=8 if args.smoke else 64,
                start_tokens=1000,
                turn_tokens=60,
                turns=4 if args.smoke else 10,
                parts=(0.25, 1.0) if args.smoke else (0.1, 0.25, 0.5, 0.75, 1.0, 1.2),
            ),
            "model": args.model,
        }
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _width(parts: tuple[int, ...]) -> int:
    """Values of K of one token in one layer: the codes are a byte each, plain floats four."""
    return parts[0] if len(parts) == 4 else parts[0] // 4


class _Speaker:
    """An engine in this process, one turn at a time."""

    def __init__(self, assembled: Assembled) -> None:
        self.assembled = assembled
        self._thread = threading.Thread(target=assembled.engine.run)
        self._thread.start()

    def speak(self, turn: Turn) -> tuple[str, Finished]:
        events: queue.SimpleQueue[TurnEvent | BackendError] = queue.SimpleQueue()
        self.assembled.engine.submit(turn, events.put)
        text = ""
        while not isinstance(event := events.get(), Finished):
            if isinstance(event, BackendError):
                raise event
            text += event.text if isinstance(event, TextDelta) else ""
        return text, event

    def to_memory(self) -> None:
        """Empties the device, so that the next restore comes from host memory."""
        device = self.assembled.device
        device.discard(device.held())

    def close(self) -> None:
        self.assembled.engine.stop()
        self._thread.join()


def _conversation(speaker: _Speaker, turns: int) -> dict[str, object]:
    """Time to first token: late in a long chat, in a chat without a history, recomputed."""
    tenant = f"bench-{secrets.token_hex(8)}"
    turn = Turn(
        id="t",
        messages=(Message(Role.SYSTEM, PERSONA * 4),),
        speaker="Maren",
        stable=1,
        sampling=Sampling(temperature=0.0, max_tokens=40),
        tenant=tenant,
        conversation="long",
        shared=1,
        persona="maren@bench",
    )
    bare = turn
    late: list[float] = []
    cached: list[float] = []
    for number in range(turns):
        turn = _with(turn, Role.USER, "You", LINES[number % len(LINES)])
        if number >= turns - 5:
            speaker.to_memory()
        text, done = speaker.speak(turn)
        if number >= turns - 5:
            late.append(done.timings.ttft_ms)
            cached.append(done.usage.cached_tokens / done.usage.prompt_tokens)
            prompt_tokens = done.usage.prompt_tokens
        last = turn
        turn = _with(turn, Role.ASSISTANT, "Maren", text)
        turn = replace(turn, sampled=(*turn.sampled[:-1], done.sampled))
    fresh = []
    for number in range(len(NUMBERS)):
        new = replace(bare, conversation=f"fresh-{number}", sampled=())
        # Its own words: a line that another chat has said would come from the cache as well.
        text = f"{NUMBERS[number]} {LINES[(turns - 1) % len(LINES)]}"
        new = _with(new, Role.USER, "You", text)
        speaker.to_memory()
        fresh.append(speaker.speak(new)[1].timings.ttft_ms)
    cold = [
        speaker.speak(replace(last, tenant=f"{tenant}-{n}"))[1].timings.ttft_ms for n in range(2)
    ]
    at_50, without = statistics.median(late), statistics.median(fresh[1:])
    return {
        "ttft_turn50_vs_fresh": round(at_50 / without, 3),
        "ttft_recompute_vs_turn50": round(statistics.median(cold) / at_50, 2),
        "ttft_turn50_ms": round(at_50, 1),
        "ttft_fresh_ms": round(without, 1),
        "ttft_recompute_ms": round(statistics.median(cold), 1),
        "cached_token_share_turn50": round(statistics.median(cached), 4),
        "turns": turns,
        "prompt_tokens_last": prompt_tokens,
    }


def _with(turn: Turn, role: Role, name: str, text: str) -> Turn:
    sampled = (*(turn.sampled or (None,) * len(turn.messages)), None)
    return replace(turn, messages=(*turn.messages, Message(role, text, name)), sampled=sampled)
