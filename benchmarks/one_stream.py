"""One stream, ours and llama.cpp's Q4_0 in turns, so that a machine's good minutes come to both.

A stream is bound by memory here and by products there, and a shared machine's memory and cores do
not change together. So each round has ours, llama.cpp's and ours again, and the median of the
rounds' ratios counts. Greedy, 1,000 tokens of context, no drafts; llama.cpp as in `engine`.
"""

from __future__ import annotations

import multiprocessing
import statistics
from concurrent.futures import ProcessPoolExecutor
from typing import TYPE_CHECKING

from backends.local.assembly import assemble
from backends.local.progress import NoProgress
from benchmarks import engine

if TYPE_CHECKING:
    import argparse

    from backends.local.assembly import Assembled

KIND = "q4_0"
_made: Assembled | None = None  # of the one process that a model's rounds run in


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of `engine` but for its other peers, and how many rounds there are."""
    engine.add_common_arguments(parser)
    parser.set_defaults(steps=12)
    parser.add_argument("--rounds", type=int, default=6)


async def run(args: argparse.Namespace) -> dict[str, object]:
    """Every round's rates and the medians, by model; see docs/engine.md."""
    if args.smoke:
        args.rounds, args.repeats, args.steps = 1, 1, 2
    found: dict[str, object] = {}
    for short, name in list(engine.MODELS.items())[: 1 if args.smoke else None]:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as alone:
            alone.submit(_ours, name, args).result()  # loads the model
            rounds: list[tuple[float, float, float]] = []
            for _ in range(args.rounds):
                before = alone.submit(_ours, name, args).result()
                peer = None if args.smoke else _llama(name, args)
                if peer is None:
                    found[short] = {"ours": before}
                    break
                rounds.append((before, peer, alone.submit(_ours, name, args).result()))
                print(f"{name}: {rounds[-1]}", flush=True)
        if rounds:
            found[short] = {
                "rounds": rounds,
                "ours": statistics.median((a + b) / 2 for a, _, b in rounds),
                "llama": statistics.median(peer for _, peer, _ in rounds),
            }
            ratios = [(a + b) / 2 / peer for a, peer, b in rounds]
            found[f"ratio_b1_{short}"] = statistics.median(ratios)
    return found


def _ours(name: str, args: argparse.Namespace) -> float:
    global _made
    _made = _made or assemble(engine.settings_of(name, args), NoProgress())
    return engine.decode(_made, 1, args)


def _llama(name: str, args: argparse.Namespace) -> float | None:
    """None, with the reason printed, where it is not there."""
    model = engine.source_of(name, args)
    asked: dict[str, int | str] = {"streams": 1, "prefill": 64, "kinds": KIND}
    rates = engine.run_peer("llama", args.llama_python, model, args, **asked)
    return rates[KIND]["decode_b1"] if rates else None
