"""The command line of the benchmarks."""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
from importlib.metadata import version
from pathlib import Path

from benchmarks import (
    cards,
    engine,
    gpu,
    kvstore,
    one_stream,
    overhead,
    prompts,
    quality,
    sampling,
    turns,
)

BENCHMARKS = {
    "cards": cards,
    "engine": engine,
    "gpu": gpu,
    "kvstore": kvstore,
    "one_stream": one_stream,
    "overhead": overhead,
    "prompts": prompts,
    "quality": quality,
    "sampling": sampling,
    "turns": turns,
}


def machine() -> dict[str, str | int]:
    """What the numbers were taken on."""
    import os

    return {
        "cpu": platform.processor() or platform.machine(),
        "cores": os.cpu_count() or 0,
        "python": platform.python_version(),
        "torch": version("torch"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    subparsers = parser.add_subparsers(dest="name", required=True, metavar="NAME")
    for name, module in BENCHMARKS.items():
        summary = (module.__doc__ or "").splitlines()[0]
        one = subparsers.add_parser(name, help=summary, description=summary)
        one.add_argument("--json", type=Path, required=True, metavar="FILE", help="write results")
        one.add_argument("--smoke", action="store_true", help="small and quick: does it still run?")
        module.add_arguments(one)
    args = parser.parse_args()
    result = asyncio.run(BENCHMARKS[args.name].run(args))
    args.json.write_text(json.dumps({**result, "machine": machine()}, indent=2) + "\n")
    print(f"written: {args.json}")


if __name__ == "__main__":
    main()
