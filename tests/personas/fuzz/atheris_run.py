"""Coverage-guided fuzzing: `python -m tests.personas.fuzz.atheris_run TARGET --seconds 60`.

Half of the mutations are libFuzzer's, half those of `mutations`, which know the formats. A finding
is written to the folder that is named at the start; give its file as `--once` to see it again.
Without atheris (it has no wheel for every platform) this says so and ends well.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from pathlib import Path

MOST_MB, MOST_S = 700, 10


def main() -> int:
    names = ("png", "charx", "json", "yaml", "exif", "chat", "macros", "keys", "lorebook")
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("target", choices=names)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--once", type=Path, metavar="FILE", help="run this one input and end")
    args = parser.parse_args()
    try:
        import atheris  # type: ignore[import-not-found,import-untyped,unused-ignore]
    except ImportError as error:
        print(f"skipped: atheris is not installed ({error})")
        return 0
    with atheris.instrument_imports(include=["personas"]):
        from tests.personas.fuzz import targets
    from tests.personas.fuzz.mutations import mutated

    target, seeds = targets.TARGETS[args.target], targets.SEEDS[args.target]
    if args.once is not None:
        target(args.once.read_bytes())
        return 0

    def mutate(data: bytes, most: int, seed: int) -> bytes:
        draw = random.Random(seed)
        if draw.random() < 0.5:
            return bytes(atheris.Mutate(data, most))
        return mutated((data, *seeds), draw)[:most]

    folder = Path(tempfile.mkdtemp(prefix=f"fuzz-{args.target}-"))
    corpus = folder / "corpus"
    corpus.mkdir()
    for number, raw in enumerate(seeds):
        (corpus / str(number)).write_bytes(raw)
    print(f"findings go to {folder}", flush=True)
    options = [
        *(f"-max_total_time={args.seconds}", f"-rss_limit_mb={MOST_MB}", f"-timeout={MOST_S}"),
        *("-max_len=65536", "-print_final_stats=1", f"-artifact_prefix={folder}/", str(corpus)),
    ]
    atheris.Setup([sys.argv[0], *options], target, custom_mutator=mutate)
    atheris.Fuzz()  # ends the process
    return 0


if __name__ == "__main__":
    sys.exit(main())
