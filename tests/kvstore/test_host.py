"""Blocks in host memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from kvstore.host import HostTier, group_shares
from kvstore.null import NullTier
from kvstore.testing import LAYOUT, TierContract, blocks, chain

if TYPE_CHECKING:
    from kvstore.api import Tier


class TestContract(TierContract):
    @pytest.fixture
    def tier(self) -> Tier:
        return HostTier(LAYOUT, 1 << 20)


def test_shares_are_the_whole() -> None:
    """The shares of the groups add up to what there is, give or take the rounding."""
    shares = group_shares(LAYOUT, 1000)
    assert set(shares) == {0, 1}
    assert 998 <= sum(shares.values()) <= 1000


def test_least_recently_used_goes_first() -> None:
    """A full group forgets the block that was used longest ago."""
    mine = [b for b in blocks(chain(range(64))) if b.key.group == 0]
    size = len(mine[0].payload)
    room = next(n for n in range(10_000) if group_shares(LAYOUT, n)[0] >= 3 * size)
    tier = HostTier(LAYOUT, room)
    for each in mine[:3]:
        tier.put([each])
    tier.get([mine[0].key])
    tier.put([mine[3]])
    assert set(tier.held()) == {mine[0].key, mine[2].key, mine[3].key}
    assert tier.stats().evicted == 1


@pytest.mark.parametrize("used", [False, True])
def test_a_chat_loses_its_tail_first(used: bool) -> None:
    """Blocks that were put or used together go from the last to the first: no gap in front."""
    tier = HostTier(LAYOUT, 1000)
    mine = [b for b in blocks(chain(range(40))) if b.key.group == 0]
    keys = [b.key for b in mine]
    tier.put(mine)
    if used:
        tier.put(blocks(chain(range(70, 78))))
        assert tier.get(keys) == mine
    left = len(keys)
    for n in range(100, 200):
        tier.put([b for b in blocks(chain([n])) if b.key.group == 0])
        assert tier.leading(keys) == sum(key in tier.held() for key in keys)
        left = min(left, tier.leading(keys))
    assert left == 0


def test_groups_do_not_push_each_other_out() -> None:
    """Any number of local blocks evicts no global block."""
    tier = HostTier(LAYOUT, 4000)
    first = blocks(chain(range(8)))
    tier.put(first)
    for n in range(100):
        tier.put([b for b in blocks(chain(range(n, n + 8), tenant="u")) if b.key.group == 1])
    assert tier.leading([b.key for b in first if b.key.group == 0]) == 1
    assert tier.stats().bytes <= 4000


def test_too_large_is_refused() -> None:
    """A block larger than its group's share is refused and counted."""
    tier = HostTier(LAYOUT, 100)
    assert tier.put(blocks(chain(range(8)))) == 0
    assert tier.stats().refused == 2


def test_null_tier_holds_nothing() -> None:
    """The do-nothing tier takes nothing and has nothing."""
    tier = NullTier()
    mine = blocks(chain(range(8)))
    assert tier.put(mine) == 0
    assert tier.get([mine[0].key]) == [None]
    assert tier.leading([mine[0].key]) == 0
    assert tier.held() == []
    tier.discard([mine[0].key])
    tier.close()
    assert tier.stats().blocks == 0
