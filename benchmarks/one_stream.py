"""One stream, ours and llama.cpp's Q4_0 in turns, so that a machine's good minutes come to both.

A stream is bound by memory here and by products there, and a shared machine's memory and cores do
not change together. So each round has ours, llama.cpp's and ours again, and the median of the
rounds' ratios counts. Greedy, 1,000 tokens of context, no drafts; llama.cpp as in `engine`.
"""

from __future__ import annotations

import json
import multiprocessing
import statistics
import subprocess
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from backends.local.assembly import assemble
from backends.local.packaged import PACKAGED, write_source
from backends.local.progress import NoProgress
from benchmarks import engine

if TYPE_CHECKING:
    import argparse

    from backends.local.assembly import Assembled

KIND = "q4_0"
_made: Assembled | None = None  # of the one process that a model's rounds run in


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of `engine`, and how many rounds there are."""
    engine.add_arguments(parser)
    parser.set_defaults(steps=12)
    parser.add_argument("--rounds", type=int, default=6)


async def run(args: argparse.Namespace) -> dict[str, object]:
    """Every round's rates and the medians, by model; see docs/engine.md."""
    if args.smoke:
        args.rounds, args.repeats, args.steps = 1, 1, 2
    found: dict[str, object] = {}
    for short, name in list(engine.MODELS.items())[: 1 if args.smoke else None]:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as alone:

            def ours() -> float:
                return alone.submit(_ours, name, args).result()  # noqa: B023 (called at once)

            ours()  # loads the model
            rounds = []
            for _ in range(args.rounds):
                rounds.append((ours(), 0.0 if args.smoke else _llama(name, args), ours()))
                print(f"{name}: {rounds[-1]}", flush=True)
        found[short] = {
            "rounds": rounds,
            "ours": statistics.median((a + b) / 2 for a, _, b in rounds),
            "llama": statistics.median(peer for _, peer, _ in rounds),
        }
        if not args.smoke:
            ratios = [(a + b) / 2 / peer for a, peer, b in rounds]
            found[f"ratio_b1_{short}"] = statistics.median(ratios)
    return found


def _ours(name: str, args: argparse.Namespace) -> float:
    global _made
    _made = _made or assemble(engine.settings_of(name, args), NoProgress())
    return engine.decode(_made, 1, args)


def _llama(name: str, args: argparse.Namespace) -> float:
    work = args.data / "peers"
    work.mkdir(parents=True, exist_ok=True)
    gguf = work / f"{name}.gguf"
    if not gguf.is_file():
        write_source(PACKAGED[name], gguf, NoProgress())
    sizes = {
        "work": work,
        "threads": args.threads,
        "prefill": 64,
        "context": engine.CONTEXT,
        "streams": 1,
        "steps": args.steps,
        "repeats": args.repeats,
        "kinds": KIND,
    }
    options = [word for option, value in sizes.items() for word in (f"--{option}", str(value))]
    program = Path(__file__).with_name("peer_llama.py")
    done = subprocess.run(
        [args.llama_python, str(program), str(gguf), *options],
        capture_output=True,
        text=True,
        check=True,
    )
    rate: float = json.loads(done.stdout.splitlines()[-1])[KIND]["decode_b1"]
    return rate
