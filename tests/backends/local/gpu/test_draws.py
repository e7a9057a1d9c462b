"""Draws on the device against numpy's: the same tokens, and how much of the logits is fetched."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings

from backends.api import Sampling
from backends.local.sampling import Draw, draw_rows
from tests.backends.local.drawing import ask, cases

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Triton's interpreter computes in numpy, which warns of what a device passes over.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

PROFILE = Sampling(temperature=0.75, top_p=0.9, min_p=0.05, repetition_penalty=1.1)


def zipf(size: int) -> NDArray[np.float32]:
    order = np.random.default_rng(3).permutation(size)
    return (-1.2 * np.log1p(order)).astype(np.float32)


@settings(
    max_examples=80,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(case=cases(sizes=(3, 64, 200, 900, 5000)))
def test_the_tokens_are_numpy_s_or_left_open(
    device: str, case: tuple[NDArray[np.float32], list[Draw | None]]
) -> None:
    """Whatever the row and the settings; -1 where there is none, -2 where one look is too few."""
    from backends.local.gpu.draws import Look, launch

    logits, draws = case
    expected = [-1 if token is None else token for token in draw_rows(logits.copy(), draws)]
    found = launch(torch.from_numpy(logits).to(device), draws, Look(128, 256, 64, 4)).tolist()
    assert [e if f == -2 else f for f, e in zip(found, expected, strict=True)] == expected


@pytest.mark.parametrize(
    ("sampling", "spread", "fetched"),
    [
        (PROFILE, 1.0, 0),
        (Sampling(temperature=0.8, top_k=100), 1.0, 0),
        (Sampling(temperature=0.0), 1.0, 0),
        (Sampling(temperature=1.0, top_p=0.7), 1.0, 0),
        (Sampling(temperature=1.0, top_p=0.9), 1.0, 0),
        (Sampling(temperature=1.0, top_p=1.0), 1.0, 1),
        (PROFILE, 0.0, 1),
    ],
    ids=["profile", "top-k", "greedy", "narrow", "second-look", "far", "all-equal"],
)
def test_no_more_is_fetched_than_it_takes(
    device: str, sampling: Sampling, spread: float, fetched: int
) -> None:
    """Only rows whose token lies beyond both looks come to the host; the tokens are numpy's."""
    from backends.local.gpu.draws import DeviceDraws

    logits = zipf(20_000) * np.float32(spread)
    draws: list[Draw | None] = [ask(sampling, 0.999, (5, 9, 17), (9,))]
    drawer = DeviceDraws()
    found = drawer.begin(torch.from_numpy(logits[None].copy()).to(device), draws)()
    assert found == draw_rows(logits[None].copy(), draws)
    assert drawer.fetched == fetched


@pytest.mark.gpu
def test_many_rows_of_a_large_vocabulary(device: str) -> None:
    """256 streams of 262,144 logits, every setting at once."""
    from backends.local.gpu.draws import DeviceDraws

    random = np.random.default_rng(4)
    logits = np.stack([zipf(262_144)[random.permutation(262_144)] for _ in range(256)])
    choices = [
        PROFILE,
        Sampling(temperature=0.0),
        Sampling(temperature=1.0, top_p=0.95),
        Sampling(temperature=0.8, top_k=40),
        Sampling(temperature=1.5, top_p=1.0),
    ]
    draws: list[Draw | None] = [
        ask(choices[i % 5], float(random.random()), tuple(random.permutation(262_144)[:900]), (i,))
        for i in range(256)
    ]
    found = DeviceDraws().begin(torch.from_numpy(logits).to(device), draws)()
    assert found == draw_rows(logits, draws)
