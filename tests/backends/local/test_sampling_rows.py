"""Drawing from a row that lies elsewhere: what drawing from its values gives, with less fetched."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.api import Sampling
from backends.local.sampling import Sampler

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass
class Far:
    """A row that counts what is asked of it."""

    logits: NDArray[np.float32]
    asked: list[str] = field(default_factory=list)

    def best(self) -> tuple[int, float]:
        self.asked.append("best")
        at = int(self.logits.argmax())
        return at, float(self.logits[at])

    def top(self, count: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        self.asked.append("top")
        count = min(count, len(self.logits))
        # Of equals at the edge, the last ones: a device promises nothing about which.
        ids = np.sort(np.argsort(self.logits[::-1], kind="stable")[::-1][:count])
        ids = np.sort(len(self.logits) - 1 - ids)
        return ids, self.logits[ids]

    def values(self) -> NDArray[np.float32]:
        self.asked.append("values")
        return self.logits


def rows(count: int, levels: int) -> NDArray[np.float32]:
    """Few levels make many equal logits."""
    drawn = np.random.default_rng(count).integers(-levels, levels, (3, count))
    return (drawn / 7).astype(np.float32)


@settings(max_examples=60)
@given(
    top_k=st.sampled_from([0, 1, 20, 128, 129]),
    temperature=st.sampled_from([0.0, 0.3, 1.0]),
    penalty=st.sampled_from([1.0, 1.2]),
    first=st.sampled_from([(), (3,)]),
    top_p=st.sampled_from([0.5, 1.0]),
    count=st.sampled_from([40, 400, 3000]),
    levels=st.sampled_from([1, 40, 100_000]),
    seed=st.integers(0, 50),
)
def test_a_far_row_gives_the_same_tokens(
    top_k: int,
    temperature: float,
    penalty: float,
    first: tuple[int, ...],
    top_p: float,
    count: int,
    levels: int,
    seed: int,
) -> None:
    """Whatever the settings, with few different logits or many."""
    sampling = Sampling(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        repetition_penalty=penalty,
        seed=seed,
    )
    near, far = (Sampler(sampling, [1, 2], first) for _ in range(2))
    for row in rows(count, levels):
        assert far.draw_from(Far(row)) == near.draw(row)


@pytest.mark.parametrize(
    ("sampling", "asked"),
    [
        (Sampling(temperature=0.0), ["best"]),
        (Sampling(temperature=1.0, top_k=64), ["top"]),
        (Sampling(temperature=1.0, top_k=0), ["values"]),
    ],
)
def test_no_more_is_fetched_than_it_takes(sampling: Sampling, asked: list[str]) -> None:
    """Greedy asks for one logit, a small top-k for a few, and the rest for all."""
    far = Far(rows(3000, 100_000)[0])
    Sampler(sampling, []).draw_from(far)
    assert far.asked == asked


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_broken_logits_are_refused(temperature: float) -> None:
    """A row without a finite largest logit raises, fetched in any way."""
    broken = np.full(300, np.nan, np.float32)
    with pytest.raises(ValueError, match="no finite logit"):
        Sampler(Sampling(temperature=temperature, top_k=4), []).draw_from(Far(broken))
