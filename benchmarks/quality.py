"""What int8 costs in quality: perplexity and KL against float32 on a text that ships.

The text is `benchmarks/quality.txt`: chapters I to VI of Jerome K. Jerome, Three Men in a Boat
(1889, public domain), about 26,000 tokens, read in windows of 1,024 tokens that each start anew.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from backends.local.checkpoint import load
from backends.local.kernels.cpu import build, kernel_cache
from backends.local.model import Chunk
from backends.local.packaged import PACKAGED, prepare
from backends.local.paged import SequenceKV
from backends.local.progress import NoProgress
from backends.local.testing import arena

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Sequence

    from backends.local.checkpoint import LoadedModel

TEXT = Path(__file__).parent / "quality.txt"
WINDOW = 1024
ROWS = 64  # logits held at once


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what only this benchmark takes."""
    parser.add_argument("--data", type=Path, default=Path("data"), help="data folder for weights")
    parser.add_argument("--models", nargs="+", default=list(PACKAGED), help="models to compare")


async def run(args: argparse.Namespace) -> dict[str, object]:
    """Perplexities, their ratio and the mean KL divergence (nats a token) of each model."""
    results: dict[str, object] = {}
    for name in args.models[:1] if args.smoke else args.models:
        folder = prepare(name, args.data, NoProgress())
        exact = load(folder, numerics="float32")
        small = load(folder, kernels=build(kernel_cache()))
        windows = list(_windows(exact))
        results[name] = compare(exact, small, [windows[0][:128]] if args.smoke else windows)
        print(f"{name}: {results[name]}")
    return results


def compare(
    exact: LoadedModel, small: LoadedModel, windows: Sequence[Sequence[int]]
) -> dict[str, float]:
    """Both models over the same windows; every position but the first counts."""
    exact_loss = small_loss = divergence = 0.0
    count = 0
    for number, window in enumerate(windows):
        for target, one, other in zip(
            _targets(window), _scores(exact, window), _scores(small, window), strict=True
        ):
            exact_loss -= float(one.gather(1, target).sum())
            small_loss -= float(other.gather(1, target).sum())
            divergence += float((one.exp() * (one - other)).sum())
            count += len(target)
        print(f"window {number + 1} of {len(windows)}: KL {divergence / count:.5f}", flush=True)
    return {
        "tokens": count,
        "ppl_float32": math.exp(exact_loss / count),
        "ppl_int8": math.exp(small_loss / count),
        "ppl_ratio": math.exp((small_loss - exact_loss) / count),
        "kl": divergence / count,
    }


def _windows(model: LoadedModel) -> Iterator[list[int]]:
    tokenizer = model.tokenizer
    ids = tokenizer.encode_text(TEXT.read_text())
    first = [tokenizer.bos_id] if tokenizer.starts_with_bos else []
    start = [i for i in first if i is not None]
    size = WINDOW - len(start)
    for at in range(0, len(ids) - size + 1, size):
        yield start + ids[at : at + size]


def _pieces(window: Sequence[int]) -> Iterator[slice]:
    for at in range(0, len(window) - 1, ROWS):
        yield slice(at, min(at + ROWS, len(window) - 1))


def _targets(window: Sequence[int]) -> Iterator[torch.Tensor]:
    for piece in _pieces(window):
        yield torch.tensor(window[piece.start + 1 : piece.stop + 1]).unsqueeze(1)


def _scores(model: LoadedModel, window: Sequence[int]) -> Iterator[torch.Tensor]:
    """Log probabilities [rows, vocab] after each token but the last, piece by piece."""
    kv = SequenceKV(arena(model.config, WINDOW + 64, kv_dtype=model.decoder.kv_dtype))
    for piece in _pieces(window):
        logits = model.decoder.score(Chunk(kv, torch.tensor(window[piece])))
        yield torch.log_softmax(logits, -1)
