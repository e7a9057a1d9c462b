"""Between a request's tokens and the KV store: what to bring back, and what to keep.

    look_up(whose, prompt)  -> Prefix     the longest stored prefix; its blocks are on the way
    arrived()               -> [Arrival]  restores that ended, or took longer than computing would
    restore(arrival, kv)    -> int        fills the sequence
    keep(prefix, kv, n)                   shows others the first `n` tokens and offers their blocks

At least one prompt token is always computed, because its logits are needed: the last one is never
looked up.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import structlog

from backends.local.outgoing import Outgoing
from kvstore.api import BlockKey, Match, Scope
from kvstore.keys import TokenChain, owner_tag
from kvstore.policy import Policy

if TYPE_CHECKING:
    from array import array
    from collections.abc import Callable, Sequence

    from backends.api import Turn
    from backends.local.paged import SequenceKV
    from backends.local.template import Prompt
    from kvstore.api import Layout, PrefixStore, Space, StoreStats, Ticket
    from kvstore.device import DeviceTier
    from kvstore.room import DeviceRoom

    Done = Callable[[int, str], None]

__all__ = ["Arrival", "Prefix", "Prefixes", "Whose"]

log = structlog.get_logger()

REMEMBERED = 1024
"""Conversations whose last prompt is remembered, to say where the next one leaves it."""


@dataclass(frozen=True, slots=True)
class Whose:
    """Whose KV a prompt's is; `shared` tokens of it are the persona's alone."""

    tenant: str
    conversation: str = ""
    persona: str = ""
    shared: int = 0

    @classmethod
    def of(cls, turn: Turn, prompt: Prompt) -> Whose:
        """Whose the KV of a turn's prompt is."""
        shared = prompt.boundaries[turn.shared - 1] if turn.shared else 0
        return cls(turn.tenant, turn.conversation, turn.persona, shared)


@dataclass(slots=True)
class Prefix:
    """What one request has in the store; filled as its restore goes on.

    `cached_len` tokens were restored; `by_tier` sums to it; `miss` says why not more, and
    `differs_at` is the first token that is not what this conversation had there before.
    """

    whose: Whose
    chain: TokenChain
    room: DeviceRoom
    held: dict[BlockKey, int] = field(default_factory=dict)
    """Pages of the device that were there and are pinned."""
    ticket: Ticket | None = None
    cached_len: int = 0
    by_tier: tuple[tuple[str, int], ...] = ()
    miss: str = ""
    differs_at: int | None = None
    deadline: float = math.inf
    """When computing would have been as fast; seconds of the engine's clock."""
    published: int = 0
    """Others can find the blocks of so many tokens on the device, but for the last partial ones."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """The end of one prefix's restore."""

    prefix: Prefix
    match: Match


class Prefixes:
    """The prefixes of every running request. Only the engine's thread calls it."""

    def __init__(
        self,
        store: PrefixStore,
        device: DeviceTier,
        space_of: Callable[[str], Space],
        policy: Policy | None = None,
    ) -> None:
        """`space_of` gives a tenant's space; `policy` is the store's."""
        self._store = store
        self._policy = policy or Policy()
        self._device = device
        self._layout: Layout = device.layout
        self._space_of = space_of
        self._on_the_way: dict[Ticket, Prefix] = {}
        self._abandoned: dict[Ticket, Prefix] = {}
        self._here: list[Arrival] = []
        self._outgoing = Outgoing(store)
        self._purging: dict[Ticket, Done] = {}
        self._last: OrderedDict[tuple[str, str], array[int]] = OrderedDict()

    @property
    def is_waiting(self) -> bool:
        """Whether something will come without a new command."""
        return bool(
            self._on_the_way or self._abandoned or self._here or self._purging or self._outgoing
        )

    def look_up(
        self, whose: Whose, prompt: Sequence[int], boundaries: Sequence[int] = (), now: float = 0.0
    ) -> Prefix:
        """Finds the longest stored prefix and starts its restore; it comes out of `arrived`.

        `boundaries` are the ends of the prompt's messages, in tokens; `now` is in seconds.
        """
        self._outgoing.hand_over()
        chain = self._chain(whose, prompt[:-1])
        if whose.shared:
            self._store.share(chain.space, self._tag(whose.tenant, f"persona:{whose.persona}"))
        match = self._store.match(chain)
        prefix = Prefix(whose, chain, self._device.room(), miss=match.miss)
        prefix.differs_at = self._differs_at(whose, chain)
        here: Sequence[BlockKey] = match.blocks
        if self._device.leading(here) < len(here):
            here = [key for key in here if self._device.leading([key])]
        pinned = self._device.pin(here)
        prefix.held = dict(zip(here, pinned or (), strict=False))
        if match.length == len(chain.tokens) and len(prefix.held) == len(match.blocks):
            self._here.append(Arrival(prefix, match))
        elif match.length or self._store.asks_far:
            ends = [n for n in boundaries if n <= len(chain.tokens)]
            prefix.ticket = self._store.load(match, chain, prefix.room, ends)
            self._on_the_way[prefix.ticket] = prefix
            prefix.deadline = now + self._policy.deadline(match.length or len(chain.tokens))
        else:
            self._here.append(Arrival(prefix, match))
        return prefix

    def arrived(self, now: float = 0.0) -> list[Arrival]:
        """Restores that ended since the last call, or that computing has overtaken by `now`."""
        self._outgoing.hand_over()
        arrivals, self._here = self._here, []
        for loaded in self._store.poll():
            if (prefix := self._on_the_way.pop(loaded.ticket, None)) is not None:
                prefix.ticket = None
                arrivals.append(Arrival(prefix, loaded.match))
            elif (prefix := self._abandoned.pop(loaded.ticket, None)) is not None:
                self._release(prefix)
        for prefix in [p for p in self._on_the_way.values() if p.deadline < now]:
            log.info("restore_overtaken", tokens=len(prefix.chain.tokens))
            self._leave(prefix)
            arrivals.append(Arrival(prefix, Match(0, miss="slow")))
        for ticket, deleted, problem in self._store.purged():
            self._purging.pop(ticket)(deleted, problem)
        return arrivals

    def restore(self, arrival: Arrival, kv: SequenceKV) -> int:
        """Fills the empty `kv` and returns how many tokens it holds now, 0 when nothing fits."""
        prefix, match = arrival.prefix, arrival.match
        prefix.miss = match.miss or prefix.miss
        length = match.length
        try:
            if length and not self._adopt(prefix, match, kv):
                prefix.miss, length = "evicted", 0
        except ValueError as error:
            # The store's promise is broken; a cache may be wrong about itself, a reply not.
            log.warning("prefix_unusable", problem=str(error), length=length)
            prefix.miss, length = "damaged", 0
        self._release(prefix)
        prefix.cached_len = prefix.published = length
        prefix.by_tier = match.by_tier if length else ()
        return length

    def forget(self, prefix: Prefix) -> None:
        """Nobody waits for this prefix any more."""
        self._here = [arrival for arrival in self._here if arrival.prefix is not prefix]
        if prefix.ticket is not None:
            self._leave(prefix)
        else:
            self._release(prefix)

    def keep(self, prefix: Prefix, kv: SequenceKV, tokens: Sequence[int]) -> None:
        """Keeps the prefix `tokens` on the device and offers what memory lacks of it.

        `tokens` begin with the request's prompt (or are a part of it) and all have their KV in
        `kv`. A block whose first tokens a sliding window forgot is left out.
        """
        length = len(tokens)
        assert length <= kv.length
        chain = prefix.chain
        chain.extend(tokens[len(chain.tokens) :])
        self._remember(prefix.whose, chain, length)
        kv.publish(
            (
                key
                for key in self._unpublished(prefix, length)
                if key.start >= kv.first_held(key.group)
                # A persona's last, partial page goes on as this conversation's.
                and (key.tokens == self._layout.block_tokens or not chain.is_shared(key))
            ),
            chain,
        )
        self._outgoing.send(
            [
                key
                for key in self._store.missing(chain, length)
                if key.start >= kv.first_held(key.group) and key not in self._outgoing
            ],
            kv,
            chain,
        )

    def saved_ms(self, prefix: Prefix, restore_ms: float) -> float:
        """What the restore has saved, by the measure of earlier prefills."""
        return self._policy.saved_ms(prefix.cached_len, restore_ms) if prefix.cached_len else 0.0

    def computed(self, tokens: int, seconds: float) -> None:
        """The model took so long over so many prompt tokens."""
        self._policy.observe_prefill(tokens, seconds)

    def prefetch(self, whose: Whose, prompt: Sequence[int], boundaries: Sequence[int]) -> None:
        """Somebody is about to speak: brings what slow tiers have of their prompt to memory."""
        ends = [n for n in boundaries if n < len(prompt)]
        self._store.prefetch(self._chain(whose, prompt[:-1]), ends)

    def retire(self, tenant: str, conversation: str) -> None:
        """Somebody left: their blocks are the first to go from device and memory."""
        space = self._space_of(tenant)
        tag = owner_tag(space.tenant_salt, f"conversation:{conversation}")
        self._device.retire(space.digest(), tag)
        self._store.retire(space.digest(), tag)

    def purge(self, tenant: str, owner: str | None, done: Done) -> None:
        """Deletes an owner's blocks, or all of a tenant's, everywhere; then calls `done`.

        `done(deleted, problem)`: problem is "" when nothing of them is left.
        """
        self._outgoing.finish()  # so that nothing of theirs comes to the store afterwards
        space = self._space_of(tenant)
        tag = None if owner is None else owner_tag(space.tenant_salt, owner)
        for name in list(self._last):
            if name[0] == tenant and owner in (None, f"conversation:{name[1]}"):
                del self._last[name]
        self._purging[self._store.purge(Scope(space.digest(), tag))] = done

    def stats(self) -> StoreStats:
        """The store's counters."""
        return self._store.stats()

    def close(self) -> None:
        """Closes the store: what is queued is written, within the store's bound."""
        for done in self._purging.values():
            done(0, "the engine stops")
        self._purging.clear()
        self._on_the_way.clear()
        self._outgoing.finish()
        self._store.close()

    def _chain(self, whose: Whose, tokens: Sequence[int]) -> TokenChain:
        space = self._space_of(whose.tenant)
        return TokenChain(
            space,
            self._layout,
            tokens,
            owner=self._tag(whose.tenant, f"conversation:{whose.conversation}"),
            shared=whose.shared,
            shared_owner=self._tag(whose.tenant, f"persona:{whose.persona}"),
        )

    def _tag(self, tenant: str, name: str) -> bytes:
        return owner_tag(self._space_of(tenant).tenant_salt, name)

    def _adopt(self, prefix: Prefix, match: Match, kv: SequenceKV) -> bool:
        """Gives `kv` the pages of the match; False when one of them was evicted meanwhile."""
        lost = [k for k in match.blocks if k not in prefix.held and k not in prefix.room.slots]
        pinned = self._device.pin(lost)
        if pinned is None:
            return False
        prefix.held |= zip(lost, pinned, strict=True)
        brought = [key for key in match.blocks if key in prefix.room.slots]
        prefix.room.settle(brought)
        kv.adopt(match.blocks, prefix.held | prefix.room.slots, match.length)
        kv.publish(brought, prefix.chain)
        for key in match.blocks:  # they are the sequence's now
            prefix.held.pop(key, None)
            prefix.room.slots.pop(key, None)
        return True

    def _leave(self, prefix: Prefix) -> None:
        """Goes on without a restore that is under way.

        Its buffers belong to the store until it has ended: they are left to a stand-in.
        """
        assert prefix.ticket is not None
        del self._on_the_way[prefix.ticket]
        stand_in = Prefix(prefix.whose, prefix.chain, prefix.room, prefix.held)
        self._abandoned[prefix.ticket] = stand_in
        prefix.ticket, prefix.room, prefix.held = None, self._device.room(), {}
        # The reader still looks at the chain; a copy goes on.
        prefix.chain = self._chain(prefix.whose, prefix.chain.tokens)

    def _release(self, prefix: Prefix) -> None:
        for key, slot in prefix.held.items():
            self._device.release(key.group, [slot])
        prefix.held.clear()
        prefix.room.release(prefix.room.slots)

    def _unpublished(self, prefix: Prefix, length: int) -> list[BlockKey]:
        """The blocks of the prefix of `length` tokens that end behind what was shown before."""
        step = self._layout.block_tokens
        shown = prefix.published - prefix.published % step
        prefix.published = max(prefix.published, length)
        return [
            BlockKey(prefix.chain.key(min(start + step, length)), start, group.id)
            for group in self._layout.groups
            for start in range(max(shown, self._layout.first_needed(group, length)), length, step)
        ]

    def _differs_at(self, whose: Whose, chain: TokenChain) -> int | None:
        before = self._last.get((whose.tenant, whose.conversation)) if whose.conversation else None
        if before is None:
            return None
        size = min(len(before), len(chain.tokens))
        one, other = np.frombuffer(before, np.uint32), np.frombuffer(chain.tokens, np.uint32)
        different = np.flatnonzero(one[:size] != other[:size])
        return int(different[0]) if len(different) else None

    def _remember(self, whose: Whose, chain: TokenChain, length: int) -> None:
        if not whose.conversation:
            return
        name = (whose.tenant, whose.conversation)
        self._last[name] = chain.tokens[:length]
        self._last.move_to_end(name)
        while len(self._last) > REMEMBERED:
            self._last.popitem(last=False)
