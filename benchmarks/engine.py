"""Tokens per second of the engine on this CPU, beside its peers' on prompts of the same lengths.

Ours is end to end through `Engine.step`: scheduling, the model, greedy sampling, detokenising.
Without drafts, as greedy text of small models soon goes in circles that drafts guess rightly:
`decode_b1_drafts` is that best case, and stands beside no peer.
Peers are programs of their own: llama.cpp (`--llama-python`) as shipped, Q4_0 and Q8_0,
CTranslate2 in int8 (`--ctranslate2-python`), transformers on PyTorch in float32. The best of all
counts for each figure. A peer that is not there has no key; the reason is printed.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from backends.api import Message, Role, Sampling, Turn
from backends.local.assembly import assemble
from backends.local.kernels.cpu import BLOCK, build, kernel_cache
from backends.local.model_config import ModelConfig
from backends.local.packaged import PACKAGED, prepare, write_source
from backends.local.progress import NoProgress
from backends.local.settings import EngineSettings
from benchmarks.quality import TEXT

if TYPE_CHECKING:
    import argparse

    from backends.api import TurnEvent
    from backends.errors import BackendError
    from backends.local.assembly import Assembled

MODELS = {"smollm2": "smollm2-135m-instruct", "gemma": "gemma-3-270m"}
CONTEXT, PREFILL, STREAMS = 1000, 1024, 16


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """What a benchmark of the engine beside llama.cpp takes."""
    parser.add_argument("--data", type=Path, default=Path("data"), help="data folder for weights")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--repeats", type=int, default=5, help="runs of which the median counts")
    parser.add_argument("--steps", type=int, default=24, help="tokens of each decode run")
    parser.add_argument(
        "--llama-python",
        default=os.environ.get("LLAMA_PYTHON", sys.executable),
        help="a Python that has llama-cpp-python",
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what only this benchmark takes."""
    add_common_arguments(parser)
    parser.add_argument(
        "--ctranslate2-python",
        default=os.environ.get("CTRANSLATE2_PYTHON", sys.executable),
        help="a Python that has ctranslate2 and transformers",
    )


async def run(args: argparse.Namespace) -> dict[str, object]:
    """Our figures, the peers' and their ratios (`decode_b1_smollm2` …); see docs/engine.md."""
    if args.smoke:
        args.repeats, args.steps = 1, 2
    build(kernel_cache())  # or the first model is loaded for PyTorch as well, until they are there
    ours: dict[str, float] = {}
    peers: dict[str, dict[str, float]] = {}
    for short, name in list(MODELS.items())[: 1 if args.smoke else None]:
        # In a process of its own: memory that another model left would count as this one's.
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as alone:
            figures = alone.submit(measure, name, args).result()
        ours |= {f"{key}_{short}": value for key, value in figures.items()}
        read, whole = _weight_bytes(name, args)
        tokens_a_byte = figures["decode_b1"] / figures["bandwidth"]
        ours[f"roof_b1_{short}"] = tokens_a_byte * read
        ours[f"roof_b1_{short}_all_weights"] = tokens_a_byte * whole
        print(f"{name}: {figures}", flush=True)
        for peer, rates in ({} if args.smoke else run_peers(name, args)).items():
            for key, value in rates.items():
                peers.setdefault(f"{key}_{short}", {})[peer] = value
    return {
        "threads": args.threads,
        "ours": ours,
        "peers": peers,
        "ratios": {key: ours[key] / max(rates.values()) for key, rates in peers.items()},
    }


def settings_of(name: str, args: argparse.Namespace) -> EngineSettings:
    """An engine that is measured by itself: no store, no drafts."""
    return EngineSettings(
        data_dir=args.data,
        model=name,
        threads=args.threads,
        context=2048,
        max_running=STREAMS,
        step_tokens=512,
        draft_tokens=0,
        store="none",
    )


def measure(name: str, args: argparse.Namespace) -> dict[str, float]:
    """Tokens per second of one model: prefill, decode of one stream and of sixteen together.

    And `peak_mib`, the process's most memory until then, less what its imports took; `bandwidth`,
    bytes a second that memory gave in the same minute.
    """
    base = _peak_mib()
    settings = settings_of(name, args)
    made = assemble(settings, NoProgress())
    rates = [_prefill(made) for _ in range(args.repeats)]
    found = {
        "prefill": statistics.median(rates),
        "decode_b1": decode(made, 1, args),
        "decode_b16": decode(made, STREAMS, args),
        "peak_mib": _peak_mib() - base,
    }
    found["bandwidth"] = measure_bandwidth(args.threads)
    del made
    drafting = assemble(replace(settings, draft_tokens=3), NoProgress())
    return found | {"decode_b1_drafts": decode(drafting, 1, args)}


def _turn(made: Assembled, tokens: int, number: int, reply: int) -> Turn:
    """A turn whose prompt has `tokens` tokens, or a few less."""
    words = TEXT.read_text().split()[number * 100 :]

    def of(count: int) -> Turn:
        return Turn(
            id=f"t{number}",
            messages=(Message(Role.USER, " ".join(words[:count])),),
            stable=0,
            speaker="Guide",
            sampling=Sampling(temperature=0.0, max_tokens=reply),
        )

    low, high = 1, tokens
    while low < high:
        middle = (low + high + 1) // 2
        fits = len(made.template.render(of(middle)).ids) <= tokens
        low, high = (middle, high) if fits else (low, middle - 1)
    return of(low)


def _ignore(event: TurnEvent | BackendError) -> None:
    """Nobody listens."""


def _submit(made: Assembled, tokens: int, number: int, reply: int) -> int:
    turn = _turn(made, tokens, number, reply)
    made.engine.submit(turn, _ignore)
    return len(made.template.render(turn).ids)


def _until_idle(made: Assembled) -> None:
    while made.engine.step():
        pass


def _prefill(made: Assembled) -> float:
    count = _submit(made, PREFILL, 0, 1)
    begin = time.perf_counter()
    _until_idle(made)
    return count / (time.perf_counter() - begin)


def decode(made: Assembled, streams: int, args: argparse.Namespace) -> float:
    """Tokens per second while `streams` speak. One that ends is replaced, outside of the count."""
    submitted = 0
    rates = []
    for _ in range(args.repeats):
        counted, given, seconds = 0, 0, 0.0
        filling = True  # until a step in which the last prompt ends; it is not counted either
        while counted < args.steps:
            for _ in range(streams - made.engine.stats().running):
                _submit(made, CONTEXT, submitted, (args.repeats + 2) * args.steps)
                submitted, filling = submitted + 1, True
            tokens, took = _timed_step(made)
            if tokens < streams:
                continue
            if not filling:
                counted, given, seconds = counted + 1, given + tokens, seconds + took
            filling = False
        rates.append(given / seconds)
    return statistics.median(rates)


def _timed_step(made: Assembled) -> tuple[int, float]:
    """The tokens that a step gave, and its seconds."""
    before, begin = made.engine.stats().sampled_tokens, time.perf_counter()
    made.engine.step()
    return made.engine.stats().sampled_tokens - before, time.perf_counter() - begin


def measure_bandwidth(threads: int) -> float:
    """Bytes per second at which this process reads memory: the best of ten sums of 512 MiB."""
    torch.set_num_threads(threads)
    data = torch.ones(1 << 27)
    best = 0.0
    for _ in range(10):
        begin = time.perf_counter()
        data.sum()
        best = max(best, data.nbytes / (time.perf_counter() - begin))
    return best


def _weight_bytes(name: str, args: argparse.Namespace) -> tuple[float, float]:
    """int8 bytes of the weights that one greedy token reads, and of all but the embedding's.

    Of a head that is looked at in 4 bits these are read, and a few blocks that are not counted.
    """
    folder = prepare(name, args.data, NoProgress())
    config = ModelConfig.from_hf(json.loads((folder / "config.json").read_text()))
    shapes = (s for s in config.tensor_shapes().values() if len(s) == 2)
    table = config.vocab_size * config.hidden_size
    layers = sum(a * b for a, b in shapes) - table * (1 if config.tie_embeddings else 2)
    kernels = build(kernel_cache())
    blocks = -(-config.vocab_size // BLOCK)
    head = blocks * kernels.coarse_bytes(config.hidden_size) if kernels else table
    return float(layers + head), float(layers + table)


def _peak_mib() -> float:
    """The most memory that this program held; what `getrusage` says counts who started it too."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def run_peers(name: str, args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """The peers' figures, by peer and quantisation; those that cannot run are missing."""
    gguf = source_of(name, args)
    folder = prepare(name, args.data, NoProgress())
    found: dict[str, dict[str, float]] = {}
    for peer, python, model in (
        ("llama", args.llama_python, gguf),
        ("ctranslate2", args.ctranslate2_python, folder),
        ("torch", sys.executable, folder),
    ):
        for kind, rates in run_peer(peer, python, model, args).items():
            found[f"{peer} {kind}"] = rates
    return found


def source_of(name: str, args: argparse.Namespace) -> Path:
    """The packaged GGUF file of a model, in the peers' folder."""
    gguf: Path = _peers_folder(args) / f"{name}.gguf"
    if not gguf.is_file():
        write_source(PACKAGED[name], gguf, NoProgress())
    return gguf


def _peers_folder(args: argparse.Namespace) -> Path:
    work: Path = args.data / "peers"
    work.mkdir(parents=True, exist_ok=True)
    return work


def run_peer(
    peer: str, python: str, model: Path, args: argparse.Namespace, **asked_too: int | str
) -> dict[str, dict[str, float]]:
    """One program's figures; empty, with the reason printed, where it fails."""
    asked = {
        "work": _peers_folder(args),
        "threads": args.threads,
        "prefill": PREFILL,
        "context": CONTEXT,
        "streams": STREAMS,
        "steps": args.steps,
        "repeats": args.repeats,
        **asked_too,
    }
    options = [word for name, value in asked.items() for word in (f"--{name}", str(value))]
    program = Path(__file__).with_name(f"peer_{peer}.py")
    command = [python, str(program), str(model), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"no {peer}: {done.stderr.strip().splitlines()[-1:]}", flush=True)
        return {}
    found: dict[str, dict[str, float]] = json.loads(done.stdout.splitlines()[-1])
    print(f"{peer}: {found}", flush=True)
    return found
