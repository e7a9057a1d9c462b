# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
"""Launches that begin while the one before still runs (programmatic dependent launch, Hopper).

Every kernel of a step calls `await_previous` once, in all of its programs: a launch that has waited
has seen the end of all launches before it. Until then it may read what no launch of a step writes
(weights, page tables), and ask for what will be read to come to the L2 cache, which is where others
write to.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

__all__ = ["await_previous", "fetch_ahead"]


@triton.jit
def await_previous(CHAINED: tl.constexpr):
    """Lets the next launch begin, and waits for the end of the one before."""
    if CHAINED:
        gdc_launch_dependents()
        gdc_wait()


@triton.jit
def fetch_ahead(at):
    """Asks for the 128 bytes around each pointer of `at`, which must be the device's memory."""
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; // $0",
        "=r,l",
        [at.to(tl.int64)],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )
