"""The engine's own work is measured, with and without a restore."""

from __future__ import annotations

import argparse

from benchmarks.overhead import add_arguments, run


async def test_smoke() -> None:
    """Three runs, each with all its figures; idle time is part of a step."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    parser.add_argument("--smoke", action="store_true")
    found = await run(parser.parse_args(["--smoke"]))
    assert set(found) == {"cold", "near", "host"}
    for figures in found.values():
        assert isinstance(figures, dict)
        assert set(figures) == {"first_us", "step_us", "idle_us", "all_us"}
        assert 0 < figures["idle_us"] < figures["step_us"]
