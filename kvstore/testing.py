"""For tests of tiers and stores: a conformance suite, toy blocks, tiers that fail. It ships.

An implementation's test file subclasses `TierContract` and gives a `tier` fixture with room for at
least sixteen of the blocks that `block` makes.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from kvstore.api import Block, BlockKey, Group, Layout, Space, TierStats
from kvstore.keys import TokenChain

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from kvstore.api import Loaded, Match, PrefixStore, Ticket, Tier

__all__ = [
    "LAYOUT",
    "FailingTier",
    "GatedTier",
    "SlowTier",
    "TierContract",
    "block",
    "blocks",
    "bring",
    "chain",
    "check",
    "keep",
    "settle",
    "wait_for",
]

LAYOUT = Layout((Group(0, (5,), None, 16), Group(1, (0, 1, 2), 12, 48)), block_tokens=8)
"""A small hybrid model: one global layer, three local ones with a window of 12 tokens."""


def chain(tokens: Iterable[int], *, tenant: str = "t", layout: Layout = LAYOUT) -> TokenChain:
    """The chain of these tokens for a test model."""
    return TokenChain(Space("m", "w", "k", "l", "float32", tenant.encode()), layout, tokens)


def block(key: BlockKey, of: TokenChain, layout: Layout = LAYOUT) -> Block:
    """The one right block of a key: its payload is a function of the key's whole prefix."""
    group = next(g for g in layout.groups if g.id == key.group)
    size = key.tokens * group.bytes_per_token
    seed = key.prefix.digest + bytes([key.group])
    payload = (seed * (size // len(seed) + 1))[:size]
    return Block(key, tuple(of.tokens[key.start : key.prefix.length]), payload)


def blocks(of: TokenChain, layout: Layout = LAYOUT) -> list[Block]:
    """Every block of a chain, tail included, all groups."""
    length, step = len(of.tokens), layout.block_tokens
    return [
        block(BlockKey(of.key(min(s + step, length)), s, g.id), of, layout)
        for g in layout.groups
        for s in range(0, length, step)
    ]


def keep(store: PrefixStore, of: TokenChain, length: int, layout: Layout = LAYOUT) -> int:
    """Offers what the prefix needs and the store lacks."""
    keys = store.missing(of, length)
    return store.offer([block(key, of, layout) for key in keys])


def bring(store: PrefixStore, of: TokenChain, match: Match | None = None) -> Loaded:
    """Loads a match and waits for it."""
    return wait_for(store, store.load(match or store.match(of), of))


def wait_for(store: PrefixStore, ticket: Ticket) -> Loaded:
    """The end of the one restore that is on its way."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        for loaded in store.poll():
            assert loaded.ticket == ticket
            return loaded
        time.sleep(0.001)
    raise TimeoutError("the load did not end")


def settle(store: PrefixStore) -> None:
    """Waits until nothing is queued behind the reply."""
    deadline = time.monotonic() + 10
    while store.stats().queued_bytes and time.monotonic() < deadline:
        time.sleep(0.001)
    assert store.stats().queued_bytes == 0


def check(loaded: Loaded, of: TokenChain, layout: Layout = LAYOUT) -> None:
    """The blocks are exactly those that the prefix needs, each with its one right payload."""
    length = loaded.match.length
    assert tuple(b.key for b in loaded.blocks) == loaded.match.blocks
    for b in loaded.blocks:
        assert b == block(b.key, of, layout)
    needed = [
        (g.id, s)
        for g in (layout.groups if length else ())
        for s in range(layout.first_needed(g, length), length, layout.block_tokens)
    ]
    assert [(b.key.group, b.key.start) for b in loaded.blocks] == needed
    assert sum(n for _, n in loaded.match.by_tier) == length


class TierContract:
    """What every tier that stores must keep."""

    def test_gives_back_what_was_put(self, tier: Tier) -> None:
        """get returns equal blocks, in the order asked, None for the unknown."""
        mine, other = blocks(chain(range(20))), blocks(chain(range(50, 60)))
        assert tier.put(mine) == len(mine)
        assert tier.get([b.key for b in reversed(mine)]) == mine[::-1]
        assert tier.get([other[0].key, mine[0].key]) == [None, mine[0]]

    def test_leading_stops_at_the_first_gap(self, tier: Tier) -> None:
        """leading counts the held keys before the first that is not."""
        mine = blocks(chain(range(30)))
        tier.put([b for i, b in enumerate(mine) if i != 2])
        keys = [b.key for b in mine]
        assert tier.leading(keys) == 2
        assert tier.leading(keys[3:]) == len(keys) - 3
        assert tier.leading([]) == 0

    def test_put_twice_is_once(self, tier: Tier) -> None:
        """A key that is held is left as it is."""
        first = blocks(chain(range(8)))[0]
        again = Block(first.key, first.token_ids, bytes(len(first.payload)))
        assert tier.put([first]) == 1
        assert tier.put([again]) == 1
        assert tier.get([first.key]) == [first]
        assert tier.stats().blocks == 1

    def test_discard_forgets(self, tier: Tier) -> None:
        """A discarded key is gone, unknown keys are fine, and it can be put again."""
        mine = blocks(chain(range(16)))
        tier.put(mine)
        tier.discard([mine[0].key, blocks(chain([9]))[0].key])
        assert tier.get([mine[0].key]) == [None]
        assert tier.leading([mine[1].key]) == 1
        assert set(tier.held()) == {b.key for b in mine[1:]}
        assert tier.put(mine[:1]) == 1
        assert tier.get([mine[0].key]) == [mine[0]]

    def test_tenants_do_not_meet(self, tier: Tier) -> None:
        """The same tokens of another tenant have other keys."""
        tier.put(blocks(chain(range(16), tenant="a")))
        assert tier.leading([b.key for b in blocks(chain(range(16), tenant="b"))]) == 0

    def test_counts(self, tier: Tier) -> None:
        """Hits, misses, stored blocks and their number add up."""
        mine = blocks(chain(range(16)))
        tier.put(mine)
        tier.get([mine[0].key, blocks(chain([3]))[0].key])
        stats = tier.stats()
        assert (stats.hits, stats.misses) == (1, 1)
        assert stats.stored == stats.blocks == len(mine)
        assert stats.bytes >= sum(len(b.payload) for b in mine)

    def test_closed_is_empty(self, tier: Tier) -> None:
        """After close (twice) a tier holds nothing, takes nothing and raises nothing."""
        mine = blocks(chain(range(8)))
        tier.put(mine)
        tier.close()
        tier.close()
        assert tier.get([mine[0].key]) == [None]
        assert tier.put(mine) == 0
        assert tier.held() == []

    def test_threads(self, tier: Tier) -> None:
        """Four threads putting and getting at once see only right blocks."""
        chains = [chain(range(n, n + 16)) for n in range(4)]
        wrong: list[object] = []

        def work(own: TokenChain) -> None:
            mine = blocks(own)
            for _ in range(20):
                tier.put(mine)
                got = tier.get([b.key for b in mine])
                wrong.extend(g for g, b in zip(got, mine, strict=True) if g not in (None, b))

        threads = [threading.Thread(target=work, args=(c,)) for c in chains]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []


class FailingTier:
    """Wraps a tier; while `broken`, get, put and discard raise `OSError` and the index answers."""

    def __init__(self, tier: Tier) -> None:
        self.name = tier.name
        self.broken = False
        self._tier = tier

    def _whole(self) -> Tier:
        if self.broken:
            raise OSError("the tier is broken")
        return self._tier

    def leading(self, keys: Sequence[BlockKey]) -> int:
        return self._tier.leading(keys)

    def get(self, keys: Sequence[BlockKey]) -> list[Block | None]:
        return self._whole().get(keys)

    def put(self, blocks: Sequence[Block]) -> int:
        return self._whole().put(blocks)

    def held(self) -> list[BlockKey]:
        return self._tier.held()

    def discard(self, keys: Sequence[BlockKey]) -> None:
        self._whole().discard(keys)

    def stats(self) -> TierStats:
        return self._tier.stats()

    def close(self) -> None:
        self._tier.close()


class SlowTier(FailingTier):
    """Wraps a tier that may also be broken; every get and put takes `seconds` longer."""

    def __init__(self, tier: Tier, seconds: float) -> None:
        super().__init__(tier)
        self.seconds = seconds

    def get(self, keys: Sequence[BlockKey]) -> list[Block | None]:
        time.sleep(self.seconds)
        return super().get(keys)

    def put(self, blocks: Sequence[Block]) -> int:
        time.sleep(self.seconds)
        return super().put(blocks)


class GatedTier(FailingTier):
    """Wraps a tier; get and put wait, for ten seconds at most, while `gate` is not set."""

    def __init__(self, tier: Tier) -> None:
        super().__init__(tier)
        self.gate = threading.Event()
        self.gate.set()

    def get(self, keys: Sequence[BlockKey]) -> list[Block | None]:
        assert self.gate.wait(10)
        return super().get(keys)

    def put(self, blocks: Sequence[Block]) -> int:
        assert self.gate.wait(10)
        return super().put(blocks)
