"""CTranslate2 in int8: a program of its own, printing JSON; see `benchmarks/engine.py`.

Runs under any Python that has ctranslate2 and transformers (which its converter needs), so it
imports nothing of ours. Tokens are timed as they come, by its callback.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import json
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path

ctranslate2 = importlib.import_module("ctranslate2")  # not among our own dependencies


def convert(folder: Path, work: Path) -> Path:
    """The model in CTranslate2's own format, int8, made once."""
    target = work / f"{folder.name}-ctranslate2"
    if not (target / "model.bin").is_file():
        converter = Path(sys.executable).with_name("ct2-transformers-converter")
        source = ["--model", str(folder), "--output_dir", str(target), "--force"]
        command = [str(converter), *source, "--quantization", "int8"]
        subprocess.run(command, check=True, capture_output=True)
    return target


class Peer:
    """One generator on `threads` threads."""

    def __init__(self, folder: Path, threads: int) -> None:
        self.generator = ctranslate2.Generator(
            str(folder), device="cpu", compute_type="int8", inter_threads=1, intra_threads=threads
        )
        self._words: list[str] = json.loads((folder / "vocabulary.json").read_text())
        self._rng = random.Random(0)

    def pick(self, count: int) -> list[str]:
        """Words of the vocabulary by chance."""
        return self._rng.choices(self._words[100:-100], k=count)

    def times(self, prompts: list[list[str]], tokens: int) -> list[float]:
        """When the prompts were given, and when the last stream got each of its tokens."""
        came = [time.perf_counter()] + [0.0] * tokens

        def note(step: object) -> bool:
            came[int(getattr(step, "step", 0)) + 1] = time.perf_counter()
            return False

        self.generator.generate_batch(
            prompts,
            max_length=tokens,
            min_length=tokens,
            beam_size=1,
            include_prompt_in_result=False,
            callback=note,
        )
        return came


def measure(peer: Peer, args: argparse.Namespace) -> dict[str, float]:
    """Tokens per second: prefill, one stream and many."""
    prompt = peer.pick(args.prefill)
    rates = []
    for _ in range(args.repeats):
        began, first = peer.times([prompt], 1)
        rates.append(args.prefill / (first - began))
    result = {"prefill": statistics.median(rates)}
    for streams, key in ((1, "decode_b1"), (args.streams, "decode_b16")):
        prompts = [peer.pick(args.context) for _ in range(streams)]
        came = peer.times(prompts, args.repeats * args.steps + 1)[1:]
        marks = came[:: args.steps]
        spans = [after - before for before, after in itertools.pairwise(marks)]
        result[key] = streams * args.steps / statistics.median(spans)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, help="a folder as transformers reads it")
    parser.add_argument("--work", type=Path, required=True, help="folder for the converted copy")
    for name in ("threads", "prefill", "context", "streams", "steps", "repeats"):
        parser.add_argument(f"--{name}", type=int, required=True)
    args = parser.parse_args()
    peer = Peer(convert(args.model, args.work), args.threads)
    print(json.dumps({"int8": measure(peer, args)}))


if __name__ == "__main__":
    main()
