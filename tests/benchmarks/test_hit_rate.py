"""The store keeps its hits where most caches lose them all."""

from __future__ import annotations

from benchmarks.hit_rate import hit_rates


def test_round_robin_keeps_the_hit_rate() -> None:
    """64 conversations in turn over a pool for a quarter of them: hits for those that fit.

    Least recently used over the same slots has none. Over a pool that is a quarter full, and so
    more than fits them all, every turn hits.
    """
    rates = hit_rates(sessions=64, start_tokens=640, turn_tokens=40, turns=4, parts=(0.25, 4.0))
    assert rates["greenroom"]["0.25"] > 0.15
    assert rates["lru_blocks"]["0.25"] == 0.0
    assert rates["greenroom"]["4"] > 0.93
