"""For tests of tiers and stores: a conformance suite, toy blocks, tiers that fail. It ships.

An implementation's test file subclasses `TierContract` and gives a `tier` fixture with room for at
least sixteen of the blocks that `block` makes.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from kvstore.api import Block, BlockKey, Group, Layout, Scope, Space, TierStats
from kvstore.keys import TokenChain

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from kvstore.api import Loaded, Match, PrefixStore, Ticket, Tier

__all__ = [
    "LAYOUT",
    "FailingTier",
    "FarTier",
    "GatedTier",
    "MemoryRoom",
    "SlowTier",
    "TierContract",
    "block",
    "blocks",
    "bring",
    "chain",
    "check",
    "got",
    "keep",
    "settle",
    "size_of",
    "wait_for",
]

LAYOUT = Layout((Group(0, (5,), None, (8, 8)), Group(1, (0, 1, 2), 12, (8, 8))), block_tokens=8)
"""A small hybrid model: one global layer, three local ones with a window of 12 tokens."""


def chain(tokens: Iterable[int], *, tenant: str = "t", layout: Layout = LAYOUT) -> TokenChain:
    """The chain of these tokens for a test model."""
    return TokenChain(Space("m", "w", "k", "l", "float32", tenant.encode()), layout, tokens)


def block(key: BlockKey, of: TokenChain, layout: Layout = LAYOUT, owner: bytes = b"") -> Block:
    """The one right block of a key: its payload is a function of the key's whole prefix."""
    group = next(g for g in layout.groups if g.id == key.group)
    size = key.tokens * group.bytes_per_token
    seed = key.prefix.digest + bytes([key.group])
    payload = (seed * (size // len(seed) + 1))[:size]
    return Block(key, of.ids(key.start, key.prefix.length), payload, owner)


def blocks(of: TokenChain, layout: Layout = LAYOUT, owner: bytes = b"") -> list[Block]:
    """Every block of a chain, tail included, all groups."""
    length, step = len(of.tokens), layout.block_tokens
    return [
        block(BlockKey(of.key(min(s + step, length)), s, g.id), of, layout, owner)
        for g in layout.groups
        for s in range(0, length, step)
    ]


def size_of(key: BlockKey, layout: Layout = LAYOUT) -> int:
    """The bytes of a key's payload."""
    return key.tokens * next(g for g in layout.groups if g.id == key.group).bytes_per_token


def got(tier: Tier, wanted: Sequence[Block]) -> list[Block | None]:
    """What a tier gives for the keys of these blocks, as blocks with the wanted owners."""
    buffers = [bytearray(len(b.payload)) for b in wanted]
    found = tier.fetch([b.key for b in wanted], [memoryview(b) for b in buffers])
    return [
        None if ids is None else Block(b.key, ids, bytes(buffer), b.owner)
        for b, ids, buffer in zip(wanted, found, buffers, strict=True)
    ]


class MemoryRoom:
    """Implements `kvstore.api.Room` in memory: `blocks` holds what a restore wrote."""

    def __init__(self, layout: Layout = LAYOUT, room: int = 1 << 30) -> None:
        self._layout = layout
        self._room = room
        self.buffers: dict[BlockKey, bytearray] = {}

    def take(self, keys: Sequence[BlockKey]) -> list[memoryview] | None:
        sizes = [size_of(key, self._layout) for key in keys]
        if sum(sizes) > self._room:
            return None
        self._room -= sum(sizes)
        made = [bytearray(size) for size in sizes]
        self.buffers |= zip(keys, made, strict=True)
        return [memoryview(buffer) for buffer in made]


def keep(store: PrefixStore, of: TokenChain, length: int, layout: Layout = LAYOUT) -> int:
    """Offers what the prefix needs and the store lacks."""
    keys = store.missing(of, length)
    return store.offer([block(key, of, layout) for key in keys])


def bring(
    store: PrefixStore,
    of: TokenChain,
    match: Match | None = None,
    boundaries: Sequence[int] = (),
    layout: Layout = LAYOUT,
) -> tuple[Loaded, MemoryRoom]:
    """Loads a match and waits for it."""
    room = MemoryRoom(layout)
    return wait_for(store, store.load(match or store.match(of), of, room, boundaries)), room


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


def check(loaded: Loaded, room: MemoryRoom, of: TokenChain, layout: Layout = LAYOUT) -> None:
    """The blocks are exactly those that the prefix needs, each with its one right payload."""
    length = loaded.match.length
    for key in loaded.match.blocks:
        assert bytes(room.buffers[key]) == bytes(block(key, of, layout).payload)
    needed = [
        (g.id, s)
        for g in (layout.groups if length else ())
        for s in range(layout.first_needed(g, length), length, layout.block_tokens)
    ]
    assert [(key.group, key.start) for key in loaded.match.blocks] == needed
    assert sum(n for _, n in loaded.match.by_tier) == length


class TierContract:
    """What every tier that stores must keep."""

    def test_gives_back_what_was_put(self, tier: Tier) -> None:
        """fetch gives equal blocks, in the order asked, None for the unknown."""
        mine, other = blocks(chain(range(20))), blocks(chain(range(50, 60)))
        assert tier.put(mine) == len(mine)
        assert got(tier, mine[::-1]) == mine[::-1]
        assert got(tier, [other[0], mine[0]]) == [None, mine[0]]

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
        again = Block(first.key, first.ids, bytes(len(first.payload)))
        assert tier.put([first]) == 1
        assert tier.put([again]) == 1
        assert got(tier, [first]) == [first]
        assert not tier.near or tier.stats().blocks == 1

    def test_discard_forgets(self, tier: Tier) -> None:
        """A discarded key is gone, unknown keys are fine, and it can be put again."""
        mine = blocks(chain(range(16)))
        tier.put(mine)
        tier.discard([mine[0].key, blocks(chain([9]))[0].key])
        assert got(tier, mine[:1]) == [None]
        assert tier.leading([mine[1].key]) == 1
        assert not tier.near or set(tier.held()) == {b.key for b in mine[1:]}
        assert tier.put(mine[:1]) == 1
        assert got(tier, mine[:1]) == mine[:1]

    def test_tenants_do_not_meet(self, tier: Tier) -> None:
        """The same tokens of another tenant have other keys."""
        tier.put(blocks(chain(range(16), tenant="a")))
        assert tier.leading([b.key for b in blocks(chain(range(16), tenant="b"))]) == 0

    def test_counts(self, tier: Tier) -> None:
        """Hits, misses, stored blocks and their number add up."""
        mine = blocks(chain(range(16)))
        tier.put(mine)
        got(tier, [mine[0], blocks(chain([3]))[0]])
        stats = tier.stats()
        assert (stats.hits, stats.misses) == (1, 1)
        assert stats.stored == len(mine)
        if tier.near:
            assert stats.blocks == len(mine)
            assert stats.bytes >= sum(len(b.payload) for b in mine)

    def test_a_buffer_of_another_size_is_a_miss(self, tier: Tier) -> None:
        """A block is never written into a buffer that it does not fill."""
        mine = blocks(chain(range(8)))[:1]
        tier.put(mine)
        size = len(mine[0].payload)
        for wrong in (size - 1, size + 1):
            assert tier.fetch([mine[0].key], [memoryview(bytearray(wrong))]) == [None]
        assert got(tier, mine) == mine

    def test_copies_what_it_is_given(self, tier: Tier) -> None:
        """The caller may use a payload's memory again as soon as put has returned."""
        mine = blocks(chain(range(8)))[0]
        memory = bytearray(mine.payload)
        tier.put([Block(mine.key, mine.ids, memoryview(memory), mine.owner)])
        memory[:] = bytes(len(memory))
        assert got(tier, [mine]) == [mine]

    def test_purge_deletes_a_scope_and_no_more(self, tier: Tier) -> None:
        """An owner's blocks go, then a whole tenant's; everybody else's stay."""
        ann, ben = b"a" * 16, b"b" * 16
        hers, his = blocks(chain(range(8)), owner=ann), blocks(chain(range(20, 28)), owner=ben)
        theirs = blocks(chain(range(8), tenant="u"), owner=ann)
        tier.put(hers + his + theirs)
        space = hers[0].key.prefix.space
        assert tier.purge(Scope(space, ann)) == len(hers)
        assert got(tier, hers + his + theirs) == [None] * len(hers) + his + theirs
        assert tier.purge(Scope(space)) == len(his)
        assert tier.purge(Scope(space)) == 0
        assert got(tier, his + theirs) == [None] * len(his) + theirs

    def test_closed_is_empty(self, tier: Tier) -> None:
        """After close (twice) a tier holds nothing, takes nothing and raises nothing."""
        mine = blocks(chain(range(8)))
        tier.put(mine)
        tier.close()
        tier.close()
        assert got(tier, mine[:1]) == [None]
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
                found = got(tier, mine)
                wrong.extend(g for g, b in zip(found, mine, strict=True) if g not in (None, b))

        threads = [threading.Thread(target=work, args=(c,)) for c in chains]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []


class FailingTier:
    """Wraps a tier; while `broken`, what touches bytes raises `OSError` and the index answers."""

    def __init__(self, tier: Tier) -> None:
        self.name = tier.name
        self.near = tier.near
        self.broken = False
        self._tier = tier

    def _whole(self) -> Tier:
        if self.broken:
            raise OSError("the tier is broken")
        return self._tier

    def leading(self, keys: Sequence[BlockKey]) -> int:
        return self._tier.leading(keys) if self.near else self._whole().leading(keys)

    def fetch(self, keys: Sequence[BlockKey], into: Sequence[memoryview]) -> list[bytes | None]:
        return self._whole().fetch(keys, into)

    def put(self, blocks: Sequence[Block]) -> int:
        return self._whole().put(blocks)

    def held(self) -> list[BlockKey]:
        return self._tier.held()

    def discard(self, keys: Sequence[BlockKey]) -> None:
        self._whole().discard(keys)

    def purge(self, scope: Scope) -> int:
        return self._whole().purge(scope)

    def stats(self) -> TierStats:
        return self._tier.stats()

    def close(self) -> None:
        self._tier.close()


class SlowTier(FailingTier):
    """Wraps a tier that may also be broken; every fetch and put takes `seconds` longer."""

    def __init__(self, tier: Tier, seconds: float) -> None:
        super().__init__(tier)
        self.seconds = seconds

    def fetch(self, keys: Sequence[BlockKey], into: Sequence[memoryview]) -> list[bytes | None]:
        time.sleep(self.seconds)
        return super().fetch(keys, into)

    def put(self, blocks: Sequence[Block]) -> int:
        time.sleep(self.seconds)
        return super().put(blocks)


class GatedTier(FailingTier):
    """Wraps a tier; fetch and put wait, for ten seconds at most, while `gate` is not set."""

    def __init__(self, tier: Tier) -> None:
        super().__init__(tier)
        self.gate = threading.Event()
        self.gate.set()

    def fetch(self, keys: Sequence[BlockKey], into: Sequence[memoryview]) -> list[bytes | None]:
        assert self.gate.wait(10)
        return super().fetch(keys, into)

    def put(self, blocks: Sequence[Block]) -> int:
        assert self.gate.wait(10)
        return super().put(blocks)


class FarTier(FailingTier):
    """Wraps a tier as one on another machine: not near, its index not to be had."""

    def __init__(self, tier: Tier) -> None:
        super().__init__(tier)
        self.name = "far"
        self.near = False
        self.asked = 0

    def leading(self, keys: Sequence[BlockKey]) -> int:
        self.asked += 1
        return super().leading(keys)

    def held(self) -> list[BlockKey]:
        return []
