"""Random draws, for the tests of all that must find the same tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from hypothesis import strategies as st

from backends.api import Sampling
from backends.local.sampling import Draw, Settings

if TYPE_CHECKING:
    from numpy.typing import NDArray

LAST = 1 - 2.0**-53
"""The largest uniform number."""


def ask(
    sampling: Sampling,
    uniform: float = 0.5,
    seen: tuple[int, ...] = (),
    masked: tuple[int, ...] = (),
) -> Draw:
    ids = (np.array(each, np.int32) for each in (seen, masked))
    return Draw(Settings.of(sampling), uniform, *ids)


def samplings() -> st.SearchStrategy[Sampling]:
    """Every filter off, on and at its ends."""
    return st.builds(
        Sampling,
        temperature=st.sampled_from([0.0, 1e-40, 1e-3, 0.3, 0.75, 1.0, 5.0]),
        top_k=st.sampled_from([0, 0, 0, 1, 2, 40, 300, 10_000]),
        top_p=st.sampled_from([1e-9, 0.1, 0.5, 0.9, 0.999, 1.0, 1.0]),
        min_p=st.sampled_from([0.0, 0.0, 1e-12, 0.05, 0.5, 0.999]),
        repetition_penalty=st.sampled_from([1.0, 0.5, 1.1, 3.0]),
    )


@st.composite
def cases(
    draw: st.DrawFn, sizes: tuple[int, ...], rows: int = 4
) -> tuple[NDArray[np.float32], list[Draw | None]]:
    """Rows of logits of one of the sizes and what is asked of them: ties, holes, broken ones."""
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    shape = draw(st.integers(1, rows)), draw(st.sampled_from(sizes))
    scale = draw(st.sampled_from([0.0, 0.1, 1.0, 4.0, 30.0, 1e37]))
    logits = (random.standard_normal(shape) * scale).astype(np.float32)
    kind = draw(st.sampled_from(["plain", "ties", "holes", "broken"]))
    if kind == "ties":
        logits = np.round(logits)
    elif kind == "holes":
        logits[random.random(shape) < 0.3] = -np.inf
    elif kind == "broken":
        logits[0, random.integers(0, shape[1])] = draw(st.sampled_from([np.nan, np.inf, -np.inf]))

    asked: list[Draw | None] = []
    for _ in range(shape[0]):
        if draw(st.integers(0, 9)) == 0:
            asked.append(None)
            continue
        ids = random.permutation(shape[1]), random.permutation(shape[1])
        seen, masked = (
            tuple(each[: draw(st.integers(0, most))].tolist())
            for each, most in zip(ids, (50, 3), strict=True)
        )
        uniform = draw(st.floats(0, LAST) | st.sampled_from([0.0, LAST]))
        asked.append(ask(draw(samplings()), uniform, seen, masked))
    return logits, asked
