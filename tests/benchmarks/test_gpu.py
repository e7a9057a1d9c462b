"""The GPU benchmark still runs, and says what it could not run."""

from __future__ import annotations

import argparse

import pytest
import torch

from benchmarks.gpu import add_arguments, measure, run
from benchmarks.ladder import RUNGS

needs_no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")


def _arguments(*given: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    parser.add_argument("--smoke", action="store_true")
    return parser.parse_args(given)


@needs_no_gpu
async def test_smoke() -> None:
    """Without CUDA: every rung and both runs of conversations on tiny models; the rest is named."""
    found = await run(_arguments("--smoke"))
    assert found["device"] == "cpu"
    missing, ladder = found["missing"], found["ladder"]
    serve, engine = found["serve"], found["engine"]
    assert isinstance(missing, dict)
    assert isinstance(ladder, dict)
    assert isinstance(serve, dict)
    assert isinstance(engine, dict)
    assert set(missing) == {"roofs", "peer"}
    assert ladder["missing"] == {}
    assert [row["rung"] for row in ladder["rows"]] == [rung.name for rung in RUNGS]
    assert ladder["rows"][0]["times_cheaper"] == 1.0
    assert ladder["total"] == ladder["rows"][-1]["times_cheaper"]
    for figures in (serve["cached"], serve["cold"], engine["cached"], engine["cold"]):
        assert figures["conversations"] == 2
        assert 0 < figures["ttft_p50_s"] <= figures["ttft_p99_s"] < figures["seconds"]
    assert engine["cached"]["cached_token_share"] == 0.95
    assert engine["cold"]["cached_token_share"] == 0.0


@needs_no_gpu
def test_no_gpu() -> None:
    """Without CUDA and without --smoke nothing is measured."""
    with pytest.raises(SystemExit, match="--smoke"):
        measure(_arguments())


@needs_no_gpu
def test_parts() -> None:
    """Only the parts asked for are run."""
    found = measure(_arguments("--smoke", "--parts", "peer"))
    assert "ladder" not in found
    assert "serve" not in found
