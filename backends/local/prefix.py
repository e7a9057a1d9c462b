"""Between a request's tokens and the KV store: what to bring back, and what to keep.

    look_up(tenant, prompt) -> Prefix     the longest stored prefix; its blocks are on the way
    arrived() -> [Arrival]                blocks that came, for `Prefix.restore`
    keep(prefix, kv, tokens)              offers the blocks of a prefix that the store lacks

At least one prompt token is always computed, because its logits are needed: the last one is never
looked up.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog

from kvstore.api import Block

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from backends.local.cache import SequenceKV
    from kvstore.api import Chain, Layout, Loaded, PrefixStore, Ticket

__all__ = ["Arrival", "Prefix", "Prefixes"]

log = structlog.get_logger()


@dataclass(slots=True)
class Prefix:
    """What one request has in the store; filled as its restore goes on.

    `cached_len` tokens were restored; `by_tier` sums to it; `miss` says why not more.
    """

    chain: Chain
    ticket: Ticket | None = None
    cached_len: int = 0
    by_tier: tuple[tuple[str, int], ...] = ()
    miss: str = ""


@dataclass(frozen=True, slots=True)
class Arrival:
    """The end of one prefix's restore."""

    prefix: Prefix
    loaded: Loaded


class Prefixes:
    """The prefixes of every running request. Only the engine's thread calls it."""

    def __init__(
        self, store: PrefixStore, layout: Layout, chain_of: Callable[[str], Chain]
    ) -> None:
        """`chain_of` gives an empty chain in the tenant's space."""
        self._store = store
        self._layout = layout
        self._chain_of = chain_of
        self._on_the_way: dict[Ticket, Prefix] = {}

    def look_up(self, tenant: str, prompt: Sequence[int]) -> Prefix:
        """Finds the longest stored prefix and starts its restore (`ticket`) if there is one."""
        chain = self._chain_of(tenant)
        chain.extend(prompt[:-1])
        match = self._store.match(chain)
        prefix = Prefix(chain, miss=match.miss)
        if match.length:
            prefix.ticket = self._store.load(match, chain)
            self._on_the_way[prefix.ticket] = prefix
        return prefix

    def arrived(self) -> list[Arrival]:
        """Restores that ended since the last call; those nobody waits for are dropped."""
        arrivals = []
        for loaded in self._store.poll():
            prefix = self._on_the_way.pop(loaded.ticket, None)
            if prefix is not None:
                prefix.ticket = None
                arrivals.append(Arrival(prefix, loaded))
        return arrivals

    def restore(self, arrival: Arrival, kv: SequenceKV) -> int:
        """Fills the empty `kv` and returns how many tokens it holds now, 0 when nothing fits."""
        prefix, loaded = arrival.prefix, arrival.loaded
        length = loaded.match.length
        if length:
            try:
                kv.restore(self._layout, loaded.blocks, length)
            except ValueError as error:
                # The store's promise is broken; a cache may be wrong about itself, a reply not.
                log.warning("prefix_unusable", problem=str(error), length=length)
                prefix.miss = "damaged"
                return 0
            prefix.by_tier = loaded.match.by_tier
        prefix.cached_len = length
        prefix.miss = loaded.match.miss or prefix.miss
        return length

    def forget(self, prefix: Prefix) -> None:
        """Nobody waits for this prefix any more."""
        if prefix.ticket is not None:
            self._on_the_way.pop(prefix.ticket, None)
            prefix.ticket = None

    def keep(self, prefix: Prefix, kv: SequenceKV, tokens: Sequence[int]) -> int:
        """Offers what the prefix `tokens` needs and the store lacks; how many blocks it took.

        `tokens` begin with the request's prompt (or are a part of it) and all have their KV in
        `kv`. A block whose first tokens a sliding window forgot is left out.
        """
        length = len(tokens)
        assert length <= kv.length
        chain = prefix.chain
        chain.extend(tokens[len(chain.tokens) :])
        groups = {group.id: group for group in self._layout.groups}
        blocks = []
        for key in self._store.missing(chain, length):
            group = groups[key.group]
            if key.start < kv.first_held(group):
                continue
            payload = kv.export(group, key.start, key.prefix.length)
            blocks.append(Block(key, tuple(tokens[key.start : key.prefix.length]), payload))
        return self._store.offer(blocks) if blocks else 0

    def close(self) -> None:
        """Closes the store: what is queued is written, within the store's bound."""
        self._on_the_way.clear()
        self._store.close()
