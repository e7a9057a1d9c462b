"""Drafts change how many steps a reply takes, and no token, no KV and no end of it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from backends.api import FinishReason, Sampling
from backends.local.drafts import Drafts
from backends.local.paged import NoRoom, SequenceKV
from backends.testing import turn as small_turn
from tests.backends.local.rig import Heard, Rig, finished, greedy, naive, next_turn, text_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from backends.api import Turn
    from backends.local.checkpoint import LoadedModel

    Rows = Callable[[int], LoadedModel]


@pytest.fixture
def rows(either_model: LoadedModel) -> Iterator[Rows]:
    """Sets how many rows a step may have; one, and so no draft, until then."""
    steps = vars(either_model.decoder)["_steps"]

    def chosen(count: int) -> LoadedModel:
        steps.row_budget = count
        return either_model

    yield chosen
    steps.row_budget = 1


def ids(heard: Heard) -> list[int]:
    sampled = finished(heard).sampled
    assert sampled is not None
    return list(sampled.ids)


@pytest.mark.parametrize("count", [2, 4, 7])
def test_same_words(rows: Rows, count: int) -> None:
    """A greedy reply is the naive loop's, in fewer steps than it has tokens."""
    model = rows(count)
    rig = Rig(model)
    turn = greedy("Who are you? Who are you?", max_tokens=120)
    (heard,) = rig.speak(turn)
    assert ids(heard) == naive(model, turn)
    assert rig.engine.stats().sampled_tokens == 120
    assert rig.engine.stats().steps < 100


@pytest.mark.parametrize("guess", [[0, 0, 0], [5, 9, 33], [3]])
def test_wrong_guesses(rows: Rows, guess: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Guesses may be wrong, all of them, always."""
    monkeypatch.setattr(Drafts, "propose", lambda _self, most: guess[:most])
    model = rows(4)
    turn = greedy(max_tokens=40)
    (heard,) = Rig(model).speak(turn)
    assert ids(heard) == naive(model, turn)


def test_right_then_wrong(rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of three guesses any number may be right, across pages and windows."""
    model = rows(4)
    turn = greedy("word " * 30, max_tokens=150)
    truth = naive(model, turn)
    prompt = len(model.template.render(turn).ids)

    def propose(drafts: Drafts, most: int) -> list[int]:
        at = len(drafts) - prompt
        right = at % 4
        return [*truth[at : at + right], 1, 1, 1][:most]

    monkeypatch.setattr(Drafts, "propose", propose)
    rig = Rig(model)
    (heard,) = rig.speak(turn)
    assert ids(heard) == truth
    assert rig.engine.stats().steps < 120


def test_two_streams_and_prefill(rows: Rows) -> None:
    """Drafts stop while others prefill and come back; nobody's words change."""
    model = rows(5)
    turns = [greedy("one one one", id="a", max_tokens=70), greedy("word " * 60, id="b")]
    for turn, heard in zip(turns, Rig(model).speak(*turns), strict=True):
        assert ids(heard) == naive(model, turn)


def test_same_chance(rows: Rows) -> None:
    """A seeded reply draws the same tokens with drafts as without."""

    def seeded(seed: int) -> Turn:
        sampling = Sampling(temperature=0.4, seed=seed, max_tokens=60, repetition_penalty=1.05)
        return small_turn("a b a b a b", sampling=sampling)

    for seed in range(4):
        (plain,) = Rig(rows(1)).speak(seeded(seed))
        (drafted,) = Rig(rows(4)).speak(seeded(seed))
        assert ids(drafted) == ids(plain)
        assert text_of(drafted) == text_of(plain)


def test_none_wanted(rows: Rows) -> None:
    """Without drafts every token takes a step."""
    rig = Rig(rows(4), draft_tokens=0)
    rig.speak(greedy("a b a b a b", max_tokens=30))
    assert rig.engine.stats().steps == 30


@pytest.mark.parametrize("most", [1, 2, 3, 4, 5, 31])
def test_length(rows: Rows, most: int) -> None:
    """A reply has as many tokens as it may have, and no more."""
    model = rows(4)
    (heard,) = Rig(model).speak(greedy("go go go go go", max_tokens=most))
    assert ids(heard) == naive(model, greedy("go go go go go", max_tokens=most))
    assert finished(heard).usage.completion_tokens == most


def test_stop_string(rows: Rows) -> None:
    """A stop string among accepted guesses ends the reply there."""
    plain = text_of(Rig(rows(1)).speak(greedy(max_tokens=90))[0])
    for at in (40, 55, 70):
        stop = plain[at : at + 3]
        turn = greedy(max_tokens=90)
        turn = replace(turn, sampling=replace(turn.sampling, stop=(stop,)))
        (heard,) = Rig(rows(4)).speak(turn)
        assert text_of(heard) == plain[: plain.index(stop)]
        assert finished(heard).reason is FinishReason.COMPLETE


def test_kept_kv(rows: Rows, either_model: LoadedModel) -> None:
    """What is kept of a drafted reply is what is kept of a plain one, and goes on the same."""
    first = greedy("Who are you? Who are you?", max_tokens=100)
    kept, said = [], []
    for count in (1, 4):
        rig = Rig(rows(count))
        (heard,) = rig.speak(first)
        (again,) = rig.speak(next_turn(first, heard, "And who else?"))
        assert finished(again).usage.cached_tokens > 100
        kept.append({key: block.payload for key, block in rig.kept.blocks.items()})
        said.append(ids(again))
    assert kept[0].keys() == kept[1].keys()
    if either_model.decoder.kv_dtype == "int8":  # float32 is not the same in every batch
        assert kept[0] == kept[1]
    assert said[0] == said[1]


def test_cancel_at_every_step(rows: Rows) -> None:
    """Cancelled after any number of steps, a drafted turn leaves nothing held."""
    model = rows(4)
    for steps in range(12):
        rig = Rig(model)
        id, _ = rig.submit(greedy("a b a b", max_tokens=60))
        for _ in range(steps):
            rig.engine.step()
        rig.engine.cancel(id)
        rig.engine.step()
        assert rig.held() == 0
        (heard,) = rig.speak(greedy("a b a b", max_tokens=60))
        assert ids(heard) == naive(model, greedy("a b a b", max_tokens=60))


def test_no_room_for_guesses(rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where pages lack for the guesses alone, the turn goes on without them."""
    model = rows(4)
    real = SequenceKV.reserve

    def reserve(kv: SequenceKV, tokens: int) -> None:
        if 1 < tokens <= 4:
            raise NoRoom
        real(kv, tokens)

    monkeypatch.setattr(SequenceKV, "reserve", reserve)
    turn = greedy("a b a b a b a b", max_tokens=40)
    (heard,) = Rig(model).speak(turn)
    assert ids(heard) == naive(model, turn)
