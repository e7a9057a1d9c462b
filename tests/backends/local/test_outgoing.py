"""Kept blocks come to the store once their copies are done, in order and never twice."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from backends.local import outgoing
from backends.local.outgoing import Outgoing
from backends.local.paged import SequenceKV
from backends.local.testing import arena
from kvstore.api import BlockKey
from kvstore.device import DeviceTier, Leaving
from kvstore.keys import TokenChain
from tests.backends.local.rig import DictStore, Rig, finished, greedy, space_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backends.local.checkpoint import LoadedModel


class Slow(Leaving):
    """Payloads that are there when somebody waits, or says so."""

    def __init__(self, payloads: list[memoryview]) -> None:
        super().__init__(lambda: payloads, 1000, None)
        self.arrived = False

    @property
    def is_here(self) -> bool:
        return self.arrived


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> list[Slow]:
    """Every copy from now on, in order."""
    made: list[Slow] = []
    real = DeviceTier.payloads

    def payloads(tier: DeviceTier, wanted: Sequence[tuple[int, int, int]]) -> Slow:
        made.append(Slow([memoryview(bytes(p)) for p in real(tier, wanted).payloads()]))
        return made[-1]

    monkeypatch.setattr(DeviceTier, "payloads", payloads)
    return made


def test_in_order_and_bounded(
    model: LoadedModel, slow: list[Slow], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second waits for the first; what is too much waits for the oldest."""
    monkeypatch.setattr(outgoing, "MOST_BYTES", 2500)
    pool = arena(model.config)
    store, kv = DictStore(pool.layout), SequenceKV(pool)
    out = Outgoing(store)
    chain = TokenChain(space_of("t"), pool.layout, range(64 * 4))
    kv.reserve(64 * 4)
    keys = [BlockKey(chain.key(64 * n), 64 * (n - 1), 0) for n in (1, 2, 3, 4)]
    out.send(keys[:1], kv, chain)
    out.send(keys[1:2], kv, chain)
    slow[1].arrived = True
    out.hand_over()
    assert not store.blocks
    assert keys[1] in out
    slow[0].arrived = True
    out.hand_over()
    assert list(store.blocks) == keys[:2]
    assert not out
    slow[0].arrived = False
    for key in (keys[2], keys[3], keys[0]):
        out.send([key], kv, chain)
    assert list(store.blocks) == keys[:3]
    assert out


def test_a_purge_waits_for_copies(model: LoadedModel, slow: list[Slow]) -> None:
    """What is on its way when somebody's KV is deleted comes to the store before that."""
    rig = Rig(model)
    rig.speak(greedy())
    assert slow
    assert not rig.kept.blocks
    rig.prefixes.purge("default", None, lambda _, __: None)
    assert rig.kept.blocks


def test_the_next_turn_finds_what_arrived(model: LoadedModel, slow: list[Slow]) -> None:
    """A look-up first takes what has come."""
    rig = Rig(model)
    rig.speak(greedy())
    for each in slow:
        each.arrived = True
    (again,) = rig.speak(greedy())
    assert finished(again).usage.cached_tokens > 0
