"""Prefixes over real tiers: where a turn's KV comes from, whose it is, and how it goes."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from backends.api import Message, Role
from backends.local.prefix import Whose
from backends.local.testing import arena
from kvstore.disk import DiskTier
from kvstore.host import HostTier
from kvstore.testing import FarTier, GatedTier, settle
from kvstore.tiered import TieredStore
from tests.backends.local.rig import Heard, Rig, finished, greedy, naive, next_turn

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from backends.api import Turn, Usage
    from backends.local.checkpoint import LoadedModel
    from kvstore.device import DeviceTier
    from kvstore.keys import TokenChain

PERSONA = "A long description of somebody who keeps a lighthouse. " * 4


class Tiers:
    """One model over device, host, disk and a far tier; each can be emptied."""

    def __init__(self, model: LoadedModel, folder: Path, tokens: int = 8192) -> None:
        self.model = model
        self.device = arena(model.config, tokens, kv_dtype=model.decoder.kv_dtype)
        self.host = HostTier(1 << 28)
        self.disk = GatedTier(DiskTier(folder, 1 << 28))
        self.far = FarTier(HostTier(1 << 28))
        self.store = TieredStore(self.device.layout, self.device, self.host, (self.disk, self.far))
        self.rig = Rig(model, store=self.store, device=self.device)

    def usage(self, turn: Turn) -> Usage:
        (heard,) = self.rig.speak(turn)
        assert heard_ids(heard) == naive(self.model, turn)
        settle(self.store)
        assert self.at_rest()
        return finished(heard).usage

    def forget(self, tier: DeviceTier | HostTier | GatedTier) -> None:
        tier.discard(tier.held())

    def at_rest(self) -> bool:
        return all(
            self.device.size(group.id) == self.device._pool.room(group.id)
            for group in self.device.layout.groups
        )

    def come_to_rest(self) -> None:
        """Steps until the readers have let go; half a minute at most."""
        latest = time.monotonic() + 30
        while not self.at_rest() and time.monotonic() < latest:
            self.rig.engine.step()
            time.sleep(0.001)
        assert self.at_rest()


def heard_ids(heard: Heard) -> list[int]:
    sampled = finished(heard).sampled
    assert sampled is not None
    return list(sampled.ids)


@pytest.fixture
def tiers(either_model: LoadedModel, tmp_path: Path) -> Iterator[Tiers]:
    made = Tiers(either_model, tmp_path)
    yield made
    made.store.close()


def turn_of(chat: str, text: str = "Who are you?", tenant: str = "t") -> Turn:
    """A first turn of a chat: the persona alone, then the person."""
    plain = greedy(text, max_tokens=6)
    said = (Message(Role.SYSTEM, PERSONA), *plain.messages)
    return replace(
        plain, messages=said, conversation=chat, persona="p@1", shared=1, stable=1, tenant=tenant
    )


def test_each_tier_serves_what_the_faster_ones_lost(tiers: Tiers) -> None:
    """The same turn comes from the device, from memory, from disk, from afar: the same tokens."""
    turn = turn_of("a")
    assert tiers.usage(turn).cached_tokens == 0
    names = []
    near = (tiers.device, tiers.host, tiers.disk)
    for lost in range(4):
        for tier in near[:lost]:
            tiers.forget(tier)
        usage = tiers.usage(turn)
        assert usage.cached_tokens == usage.prompt_tokens - 1 or usage.cached_tokens > 150
        assert len(usage.cached_by_tier) == 1
        names += [tier for tier, _ in usage.cached_by_tier]
    assert names == ["device", "host", "disk", "far"]


def test_restored_from_afar_goes_near(tiers: Tiers) -> None:
    """What a restore or a reply used is on the device and in memory afterwards."""
    turn = turn_of("a")
    tiers.usage(turn)
    for tier in (tiers.device, tiers.host, tiers.disk):
        tiers.forget(tier)
    tiers.usage(turn)
    tiers.forget(tiers.device)
    assert dict(tiers.usage(turn).cached_by_tier).keys() == {"host"}


def test_a_persona_is_compiled_once(tiers: Tiers) -> None:
    """A new chat with a known persona begins behind all that the persona says."""
    first = turn_of("a")
    shared = tiers.model.template.render(first).boundaries[0]
    assert shared > 150
    tiers.usage(first)
    other = turn_of("b", "Hello there")
    assert tiers.usage(other).cached_tokens >= shared
    assert tiers.usage(turn_of("c", "Hello there", tenant="other")).cached_tokens == 0


def test_deleting_a_conversation_leaves_the_persona(tiers: Tiers) -> None:
    """Its own blocks are gone from every tier; the persona's and everybody else's are not.

    A block with the same text in two chats belongs to the first: the other computes it once more.
    """
    turn, other = turn_of("a"), turn_of("b", "Something else entirely")
    shared = tiers.model.template.render(turn).boundaries[0]
    tiers.usage(turn)
    kept = tiers.usage(other)
    before = tiers.usage(other).cached_tokens
    assert before > max(shared, kept.cached_tokens)
    deleted = purge(tiers, "t", "conversation:a")
    assert deleted > 0
    assert shared <= tiers.usage(other).cached_tokens
    usage = tiers.usage(turn)
    assert shared <= usage.cached_tokens < usage.prompt_tokens - 1
    purge(tiers, "t", "conversation:a")
    assert tiers.usage(other).cached_tokens == before


def test_deleting_a_persona_or_a_tenant(tiers: Tiers) -> None:
    """Without the persona's blocks nothing of its chats can be restored; a tenant takes all."""
    turn, theirs = turn_of("a"), turn_of("a", tenant="other")
    tiers.usage(turn)
    tiers.usage(theirs)
    assert purge(tiers, "t", "persona:p@1") > 0
    assert tiers.usage(turn).cached_tokens == 0
    assert tiers.usage(theirs).cached_tokens > 0
    assert purge(tiers, "other", None) > 0
    assert tiers.usage(theirs).cached_tokens == 0
    assert purge(tiers, "nobody", None) == 0


def purge(tiers: Tiers, tenant: str, owner: str | None) -> int:
    ended: list[tuple[int, str]] = []
    tiers.rig.engine.forget(tenant, owner, lambda n, problem: ended.append((n, problem)))
    latest = time.monotonic() + 30
    while not ended and time.monotonic() < latest:
        tiers.rig.engine.step()
        settle(tiers.store)
        time.sleep(0.001)
    ((deleted, problem),) = ended
    assert problem == ""
    return deleted


def test_prefetch_brings_it_to_memory(tiers: Tiers) -> None:
    """Typing moves a chat from disk to memory before the turn comes."""
    turn = turn_of("a")
    tiers.usage(turn)
    tiers.forget(tiers.device)
    tiers.forget(tiers.host)
    tiers.rig.engine.prefetch(turn)
    tiers.rig.engine.step()
    tiers.store._readers.shutdown(wait=True)
    assert dict(tiers.store.match(chain_of(tiers, turn)).by_tier).keys() == {"host"}


def chain_of(tiers: Tiers, turn: Turn) -> TokenChain:
    return tiers.rig.prefixes._chain(whose(tiers, turn), ids(tiers, turn)[:-1])


def test_says_where_an_edited_chat_differs(tiers: Tiers) -> None:
    """After an edit the usage names the first token that is not what was there before."""
    turn = turn_of("a", "I like tea and biscuits")
    (heard,) = tiers.rig.speak(turn)
    later = next_turn(turn, heard, "And you?")
    assert tiers.rig.prefixes.look_up(whose(tiers, later), ids(tiers, later)).differs_at is None
    edited = turn_of("a", "I like ten and biscuits")
    now, before = ids(tiers, edited), ids(tiers, turn)
    first = next(i for i, (a, b) in enumerate(zip(now, before, strict=False)) if a != b)
    assert tiers.rig.prefixes.look_up(whose(tiers, edited), now).differs_at == first


def ids(tiers: Tiers, turn: Turn) -> tuple[int, ...]:
    return tiers.model.template.render(turn).ids


def whose(tiers: Tiers, turn: Turn) -> Whose:
    return Whose.of(turn, tiers.model.template.render(turn))


def test_a_small_pool_serves_one_after_the_other(model: LoadedModel, tmp_path: Path) -> None:
    """Turns that do not fit the device together wait for each other, and all are right."""
    tiers = Tiers(model, tmp_path, tokens=448)
    turns = [turn_of(str(n), "word " * n) for n in range(1, 6)]
    for turn, heard in zip(turns, tiers.rig.speak(*turns), strict=True):
        assert heard_ids(heard) == naive(model, turn)
    assert tiers.at_rest()
    tiers.store.close()


def test_a_cancelled_restore_gives_its_pages_back(tiers: Tiers) -> None:
    """A turn that is cancelled while its blocks are on the way frees them when they have come."""
    turn = turn_of("a")
    tiers.usage(turn)
    tiers.forget(tiers.device)
    tiers.forget(tiers.host)
    tiers.disk.gate.clear()
    id, heard = tiers.rig.submit(turn)
    while tiers.at_rest():
        tiers.rig.engine.step()
    tiers.rig.engine.cancel(id)
    tiers.rig.engine.step()
    assert not tiers.at_rest()  # the reader may still write there
    tiers.disk.gate.set()
    tiers.rig.drain()
    tiers.come_to_rest()
    assert heard == []


def test_computing_overtakes_a_slow_restore(tiers: Tiers) -> None:
    """A restore that takes longer than computing is left behind; the reply is right and says so."""
    turn = turn_of("a")
    tiers.usage(turn)
    tiers.forget(tiers.device)
    tiers.forget(tiers.host)
    tiers.disk.gate.clear()
    tiers.rig.prefixes._policy.observe_prefill(1_000_000, 1.0)  # computing is all but free
    (heard,) = tiers.rig.speak(turn)
    assert heard_ids(heard) == naive(tiers.model, turn)
    usage = finished(heard).usage
    assert (usage.cached_tokens, usage.miss) == (0, "slow")
    tiers.disk.gate.set()
    tiers.come_to_rest()
