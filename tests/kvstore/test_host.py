"""Blocks in host memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from kvstore.host import HostTier
from kvstore.null import NullTier
from kvstore.testing import TierContract, blocks, chain, got

if TYPE_CHECKING:
    from kvstore.api import Block, Tier


class TestContract(TierContract):
    @pytest.fixture
    def tier(self) -> Tier:
        return HostTier(1 << 20)


class Clock:
    """Seconds that a test moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def size(chat: list[Block]) -> int:
    return sum(len(block.payload) for block in chat)


def chat(number: int, tenant: str = "t") -> list[Block]:
    """The blocks of one small chat, owned by it."""
    of = chain(range(number * 100, number * 100 + 24), tenant=tenant)
    return blocks(of, owner=number.to_bytes(16, "big"))


def whole(tier: HostTier, of: list[Block]) -> bool:
    return tier.leading([b.key for b in of]) == len(of)


def test_the_bound_holds() -> None:
    """The tier never holds more bytes than it may, and counts what it evicts and refuses."""
    clock = Clock()
    tier = HostTier(3 * size(chat(0)), clock=clock)
    for number in range(20):
        clock.now += 1000.0
        tier.put(chat(number))
        assert tier.stats().bytes <= 3 * size(chat(0))
    assert whole(tier, chat(19))
    assert tier.stats().evicted == 17 * len(chat(0))
    assert tier.put([chat(30)[0]] * 1) == 1


def test_who_left_goes_first() -> None:
    """A retired chat makes room before one that is only older."""
    clock = Clock()
    tier = HostTier(3 * size(chat(0)), clock=clock)
    for number in range(3):
        clock.now += 5.0
        tier.put(chat(number))
    tier.retire(chat(1)[0].key.prefix.space, chat(1)[0].owner)
    clock.now += 5.0
    tier.put(chat(3))
    assert [whole(tier, chat(n)) for n in range(4)] == [True, False, True, True]


def test_more_chats_than_fit_keep_their_hits() -> None:
    """Round robin over four times as many chats as fit still hits those that fit."""
    clock = Clock()
    tier = HostTier(4 * size(chat(0)), clock=clock)
    hits = 0
    for turn in range(160):
        clock.now += 3.0
        mine = chat(turn % 16)
        if turn >= 80:
            hits += whole(tier, mine)
        tier.put(mine)
        got(tier, mine)
    assert hits >= 16  # of 80: what fits is a quarter


def test_a_tenant_keeps_to_its_share() -> None:
    """One tenant cannot push another out past its own quota."""
    tier = HostTier(8 * size(chat(0)), tenant_bytes=2 * size(chat(0)))
    mine = chat(0, "quiet")
    tier.put(mine)
    for number in range(1, 30):
        tier.put(chat(number, "loud"))
    loud = chat(1, "loud")[0].key.prefix.space
    held = [key for key in tier.held() if key.prefix.space == loud]
    assert 0 < len(held) <= 2 * len(mine)
    assert whole(tier, mine)


def test_a_persona_outlives_its_chats() -> None:
    """What many chats begin with stays while chats come and go."""
    clock = Clock()
    tier = HostTier(6 * size(chat(0)), clock=clock)
    persona = chat(0)
    tier.share(persona[0].key.prefix.space, persona[0].owner)
    tier.put(persona)
    for number in range(1, 40):
        clock.now += 500.0
        tier.put(chat(number))
    assert whole(tier, persona)


def test_too_large_is_refused() -> None:
    """A block larger than the tier is refused and counted, and nothing else is lost."""
    tier = HostTier(40)
    assert tier.put(blocks(chain(range(8)))) == 0
    assert tier.stats().refused == 2
    assert tier.stats().bytes == 0


def test_null_tier() -> None:
    """The do-nothing tier takes nothing and gives nothing."""
    tier = NullTier()
    mine = blocks(chain(range(8)))
    assert tier.put(mine) == 0
    assert got(tier, mine) == [None] * len(mine)
    assert tier.held() == []
    tier.close()
