"""Beside a device that still computes, the engine says what it says when it waits for each step."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from backends.api import Finished, FinishReason
from backends.errors import BackendErrorCode
from backends.local.live import Promises
from backends.local.model import Chunk, Decoder
from backends.local.scheduler import Limits
from backends.local.testing import arena
from kvstore.host import HostTier
from kvstore.tiered import TieredStore
from tests.backends.local.rig import Rig, error_of, finished, greedy, naive, next_turn, text_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from backends.api import Turn
    from backends.local.checkpoint import LoadedModel
    from backends.local.kernels.batch import Drawing
    from backends.local.sampling import Draw


class Beside(Decoder):
    """Says that its steps go on behind `forward`, and can fail in one of them."""

    @property
    def runs_beside(self) -> bool:
        return True

    def draw(self, logits: torch.Tensor, draws: Sequence[Draw | None]) -> Drawing:
        if self.__dict__.pop("broken", False):
            return self._broken
        return super().draw(logits, draws)

    def _broken(self) -> list[int | None]:
        raise RuntimeError("the device is gone")


def beside(model: LoadedModel) -> LoadedModel:
    decoder = Beside.__new__(Beside)
    decoder.__dict__.update(model.decoder.__dict__)
    return replace(model, decoder=decoder)


def stopping(model: LoadedModel) -> Turn:
    """A turn that a stop string ends in the middle of its reply."""
    whole = text_of(Rig(model).speak(greedy(max_tokens=40))[0])
    stop = next(whole[i : i + 3] for i in range(4, 30) if whole.find(whole[i : i + 3]) == i)
    turn = greedy(max_tokens=40, id="stops")
    return replace(turn, sampling=replace(turn.sampling, stop=(stop,)))


def test_says_the_same(model: LoadedModel) -> None:
    """Turns that end by length, by a stop string and at once: events, counts and ids."""
    turns = [greedy("one", id="a", max_tokens=9), stopping(model), greedy(id="b", max_tokens=1)]
    expected = Rig(model, draft_tokens=0).speak(*turns)
    for one, other in zip(expected, Rig(beside(model)).speak(*turns), strict=True):
        assert text_of(one) == text_of(other)
        assert finished(one).sampled == finished(other).sampled
        assert finished(one).usage == finished(other).usage
        assert sum(isinstance(event, Finished) for event in other) == 1


def test_a_void_step_leaves_nothing(model: LoadedModel) -> None:
    """After a stop string that was found a step late, the next turn finds the same prefix, and
    every page is free."""
    turn = stopping(model)
    found = []
    for each in (model, beside(model)):
        device = arena(model.config, kv_dtype=model.decoder.kv_dtype)
        store = TieredStore(device.layout, device, HostTier(1 << 28))
        rig = Rig(each, draft_tokens=0, device=device, store=store)
        (heard,) = rig.speak(turn)
        assert finished(heard).reason is FinishReason.COMPLETE
        (again,) = rig.speak(next_turn(turn, heard, "And then?"))
        found.append((finished(again).usage, finished(again).sampled))
        assert vars(device)["_pool"].used == 0
        store.close()
    assert found[0] == found[1]


def test_chunks_and_company(model: LoadedModel) -> None:
    """Prefills in chunks beside decodes are the naive loop's, and turning points are kept."""
    turns = [greedy("word " * n, id=f"t{n}", max_tokens=8 + n) for n in (1, 7, 20, 3, 11)]
    rig = Rig(beside(model), limits=Limits(max_running=3, step_tokens=13))
    for turn, heard in zip(turns, rig.speak(*turns), strict=True):
        sampled = finished(heard).sampled
        assert sampled is not None
        assert list(sampled.ids) == naive(model, turn)
    (again,) = rig.speak(turns[2])
    assert finished(again).usage.cached_tokens > 0


def test_cancel_at_every_step(model: LoadedModel) -> None:
    """A cancelled turn goes silent at once, holds nothing and serves the next one."""
    turn = greedy("word " * 20, max_tokens=5)
    for steps in range(14):
        rig = Rig(beside(model), limits=Limits(step_tokens=32))
        id, heard = rig.submit(turn)
        for _ in range(steps):
            rig.engine.step()
        before = list(heard)
        rig.engine.cancel(id)
        rig.engine.step()
        assert rig.held() == 0
        assert vars(rig.device)["_pool"].used == 0
        rig.drain()
        assert heard == before
        (again,) = rig.speak(turn)
        assert finished(again).usage.completion_tokens == 5


def test_a_step_that_fails_in_the_air(model: LoadedModel) -> None:
    """Its turns fail, those that had ended by then have not; the next turn works."""
    made = beside(model)
    rig = Rig(made)
    _, short = rig.submit(greedy(id="short", max_tokens=1))
    _, long = rig.submit(greedy("other", id="long"))
    for _ in range(5):
        rig.engine.step()
    made.decoder.__dict__["broken"] = True
    rig.drain()
    assert isinstance(short[-1], Finished)
    assert error_of(long[-1:]).code is BackendErrorCode.INTERNAL
    (heard,) = rig.speak(greedy())
    assert finished(heard).usage.completion_tokens == 24


def test_a_failed_turn_is_not_kept(model: LoadedModel) -> None:
    """A turn that fails where its prompt turns gives its pages back and offers nothing."""
    for each in (model, beside(model)):
        rig = Rig(each)
        rig.engine.submit(greedy("word " * 40), lambda event: None)
        while not rig.engine.step():
            pass
        (live,) = vars(rig.engine)["_turns"]
        kept = dict(rig.kept.blocks)
        live.passed.append(70)
        vars(rig.engine)["_passing"].append(live)
        vars(rig.engine)["_turns"].fail(live, "for a test")
        rig.drain()
        assert rig.kept.blocks == kept
        assert vars(rig.device)["_pool"].used == 0


def test_nothing_is_computed_for_who_was_cancelled(model: LoadedModel) -> None:
    """An order that came during a step is obeyed before the next is launched."""
    computed: list[int] = []

    class Watched(Beside):
        def forward(self, chunks: Sequence[Chunk]) -> torch.Tensor:
            computed.append(len(chunks))
            return super().forward(chunks)

    decoder = Watched.__new__(Watched)
    decoder.__dict__.update(model.decoder.__dict__)
    rig = Rig(replace(model, decoder=decoder))
    ids = [rig.submit(greedy(id=name))[0] for name in ("a", "b")]
    for _ in range(6):
        rig.engine.step()
    rig.engine.cancel(ids[0])
    rig.engine.step()
    assert computed[-2:] == [2, 1]


def test_admits_a_few_at_a_time(model: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where look-ups take long, those that run do not wait for all that are new."""
    monkeypatch.setattr("backends.local.engine.WELCOME_S", -1.0)
    turns = [greedy("word " * n, id=f"t{n}", max_tokens=8) for n in (1, 5, 9)]
    rig = Rig(beside(model))
    heard = [rig.submit(turn)[1] for turn in turns]
    rig.engine.step()
    assert (rig.engine.stats().running, rig.engine.stats().queued) == (1, 2)
    rig.drain()
    for turn, one in zip(turns, heard, strict=True):
        sampled = finished(one).sampled
        assert sampled is not None
        assert list(sampled.ids) == naive(model, turn)


@pytest.mark.parametrize("tokens", [1, 100, 700])
def test_promises_add_up(model: LoadedModel, tokens: int) -> None:
    """As many turns as the device has pages for are promised theirs, and again when they ended."""
    pool = arena(model.config, 2000)
    promises = Promises(pool, 64)
    fitting = 0
    while promises.make(fitting, tokens):
        fitting += 1
    assert fitting >= 2
    assert not promises.make(999, tokens)
    promises.end(0)
    promises.end(0)
    assert promises.make(999, tokens)
