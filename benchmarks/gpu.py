"""One GPU: what each technique saves (the ladder), kernels beside their roofs, 256 conversations.

Without CUDA only `--smoke` runs: tiny models on the CPU, whose figures say nothing but that the
code works. Parts that cannot run are named under `missing` with the reason, never estimated.
docs/ladder.md is written from the JSON by `python -m benchmarks.gpu_report`.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import torch

from benchmarks.gpu_engine import serve_engine
from benchmarks.gpu_ladder import Room, measure_ladder
from benchmarks.gpu_roofs import card, roofs
from benchmarks.gpu_serve import Shape, serve_peer, serve_steps
from benchmarks.ladder import Traffic

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

PARTS = ("roofs", "ladder", "serve", "engine", "peer")
GEMMA = "270m-gemma"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what only this benchmark takes."""
    usual = Traffic()
    parser.add_argument(
        "--synthetic", default="13b", metavar="SIZE", help="1b or 13b: the ladder's"
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--price", type=float, default=usual.price_an_hour, help="USD a GPU-hour")
    parser.add_argument("--turns", type=float, default=usual.turns_an_hour, help="turns an hour")
    parser.add_argument("--cached", type=float, default=usual.cached_share, help="cached share")
    parser.add_argument("--conversations", type=int, default=256)
    parser.add_argument(
        "--peer-seconds", type=float, default=240.0, help="transformers' time limit"
    )


async def run(args: argparse.Namespace) -> dict[str, object]:
    """The parts asked for; see docs/ladder.md for what the keys mean."""
    return await asyncio.to_thread(measure, args)


def measure(args: argparse.Namespace) -> dict[str, object]:
    """Runs one part after the other; a part that fails is reported and ends no other."""
    on_gpu = torch.cuda.is_available()
    if not on_gpu and not args.smoke:
        raise SystemExit("this benchmark needs a CUDA device; --smoke runs tiny shapes without one")
    result: dict[str, object] = {"smoke": args.smoke, "device": "cuda" if on_gpu else "cpu"}
    missing: dict[str, str] = {}
    result["missing"] = missing

    def part(name: str, make: Callable[[], dict[str, object]]) -> None:
        if name not in args.parts:
            return
        try:
            result[name] = make()
        except (ImportError, RuntimeError, ValueError) as error:
            missing[name] = f"{type(error).__name__}: {error}"
            print(f"missing: {name}: {missing[name]}", flush=True)
        if on_gpu:
            torch.cuda.empty_cache()

    # Streams last: what they leave behind on the card is small.
    part("roofs", lambda: _roofs(on_gpu))
    part("ladder", lambda: _ladder(args, on_gpu))
    part("serve", lambda: _serve(args, on_gpu, serve_steps))
    part("engine", lambda: _serve(args, on_gpu, serve_engine))
    part("peer", lambda: _peer(args, on_gpu))
    return result


def _roofs(on_gpu: bool) -> dict[str, object]:
    if not on_gpu:
        raise RuntimeError("roofs are those of a CUDA device")
    found = card()
    bandwidth, rate = found["copy_bytes_a_second"], found["int8_operations_a_second"]
    return {"card": found, **roofs(float(bandwidth), float(rate))}


def _ladder(args: argparse.Namespace, on_gpu: bool) -> dict[str, object]:
    size, traffic = args.synthetic, _traffic(args)
    if args.smoke:
        memory = 64 << 20
        room = Room("cuda" if on_gpu else "cpu", 0, smallest=2, most=4, repeats=1, memory=memory)
        size = "1m"
    else:
        room = Room("cuda", reserve=6 << 30, smallest=8, most=4096, repeats=5)
    return measure_ladder(size, traffic, room)


def _traffic(args: argparse.Namespace) -> Traffic:
    common = {
        "turns_an_hour": args.turns,
        "price_an_hour": args.price,
        "cached_share": args.cached,
    }
    if args.smoke:
        return Traffic(prompt=80, reply=2, longest_reply=5, slowest_step=60.0, **common)
    return Traffic(**common)


def _shape(args: argparse.Namespace, cached: float) -> Shape:
    if args.smoke:
        return Shape(conversations=2, prompt=80, reply=2, cached=round(80 * cached))
    return Shape(args.conversations, 5600, 140, cached=round(5600 * cached))


def _serve(
    args: argparse.Namespace, on_gpu: bool, serve: Callable[[Shape, str, str], dict[str, float]]
) -> dict[str, object]:
    name = "1m-cai" if args.smoke else GEMMA
    device = "cuda" if on_gpu else "cpu"
    found: dict[str, object] = {"model": name}
    for key, cached in (("cached", args.cached), ("cold", 0.0)):
        shape = _shape(args, cached)
        figures = serve(shape, name, device)
        print(f"{serve.__name__} {key}: {figures}", flush=True)
        found[key] = figures
    return found


def _peer(args: argparse.Namespace, on_gpu: bool) -> dict[str, object]:
    if not on_gpu or args.smoke:
        raise RuntimeError("transformers' continuous batching is run on a CUDA device alone")
    found = serve_peer(_shape(args, 0.0), args.peer_seconds)
    print(f"peer: {found}", flush=True)
    return found
