"""The contracts of the KV store. Standard library only.

Three levels, from the engine down:

    PrefixStore     what the engine sees: match, load, missing, offer, poll; nothing here blocks
    Tier            one place where blocks lie (host memory, LMDB): blocking, thread-safe
    Block           the bytes of one layer group over one run of tokens

A prefix of `p` tokens is restorable when, for every group, the blocks that its attention reads are
there: all of [0, p) for a global group, only [p - window, p) for a local one (rounded down to a
block). Layers that read another layer's KV belong to no group and own no bytes.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = [
    "Block",
    "BlockKey",
    "Chain",
    "Group",
    "Layout",
    "Loaded",
    "Match",
    "PrefixKey",
    "PrefixStore",
    "Space",
    "StoreStats",
    "Ticket",
    "Tier",
    "TierStats",
]


@dataclass(frozen=True, slots=True)
class Space:
    """Everything that makes KV bytes incompatible: two prefixes share bytes only inside one space.

    All fields are opaque strings; `tenant_salt` is a secret that keeps tenants apart.
    """

    model: str
    weights: str
    tokenizer: str
    kv_layout: str
    kv_dtype: str
    tenant_salt: bytes

    def digest(self) -> bytes:
        """16 bytes that name this space; injective up to BLAKE2b."""
        h = hashlib.blake2b(digest_size=16, key=hashlib.sha256(self.tenant_salt).digest())
        for part in (self.model, self.weights, self.tokenizer, self.kv_layout, self.kv_dtype):
            raw = part.encode()
            h.update(len(raw).to_bytes(8, "little") + raw)
        return h.digest()


@dataclass(frozen=True, slots=True)
class Group:
    """Layers whose KV is stored together. `window` None is global attention.

    `bytes_per_token` is the size of the K and V of all `layers` for one token.
    """

    id: int
    layers: tuple[int, ...]
    window: int | None
    bytes_per_token: int


@dataclass(frozen=True, slots=True)
class Layout:
    """How a model's KV is cut: groups of layers, runs of `block_tokens` tokens."""

    groups: tuple[Group, ...]
    block_tokens: int = 64

    def first_needed(self, group: Group, length: int) -> int:
        """The first token whose block of `group` a prefix of `length` tokens needs."""
        if group.window is None:
            return 0
        start = max(0, length - group.window)
        return start - start % self.block_tokens


@dataclass(frozen=True, slots=True)
class PrefixKey:
    """Names a prefix of exactly `length` tokens inside one space.

    `rolling` is an index value of the same tokens (see `kvstore.keys`); `digest` is the authority.
    """

    space: bytes
    digest: bytes
    length: int
    rolling: int


@dataclass(frozen=True, slots=True)
class BlockKey:
    """Names the bytes of `group` over tokens [start, prefix.length) of a prefix."""

    prefix: PrefixKey
    start: int
    group: int

    @property
    def tokens(self) -> int:
        return self.prefix.length - self.start


@dataclass(frozen=True, slots=True)
class Block:
    """One stored run of KV.

    `token_ids` are the ids of the run (compared on every hit), `payload` the raw bytes exactly as
    attention reads them: `[layer, k|v, token, kv_head, dim]`, C order. Nobody changes it any more;
    a memoryview is flat and of format "B".
    """

    key: BlockKey
    token_ids: tuple[int, ...]
    payload: bytes | memoryview


class Chain(Protocol):
    """The keys of every prefix of one token sequence (see `kvstore.keys`)."""

    @property
    def tokens(self) -> Sequence[int]:
        """The ids, in order; do not mutate."""
        ...

    def extend(self, tokens: Iterable[int]) -> None:
        """Appends `k` tokens in O(k)."""
        ...

    def rolling(self, length: int) -> int:
        """The index value of the first `length` tokens."""
        ...

    def key(self, length: int) -> PrefixKey:
        """The key of the first `length` tokens."""
        ...


@dataclass(frozen=True, slots=True)
class Match:
    """The longest restorable prefix: `length` tokens, made of `blocks`.

    `by_tier` says how many of the tokens each tier serves, a token counting for the slowest tier
    that any of its blocks comes from; it sums to `length`. `miss` says why the match is not longer:
    `cold` (nothing of this prefix was ever here), `evicted` or `window_evicted` (a longer one was,
    and a global or a local block of it is gone), `damaged`, or `""` (the rest was never seen).
    """

    length: int
    blocks: tuple[BlockKey, ...] = ()
    by_tier: tuple[tuple[str, int], ...] = ()
    miss: str = ""


@dataclass(frozen=True, slots=True)
class Ticket:
    """A restore in flight; compare by `id`."""

    id: int


@dataclass(frozen=True, slots=True)
class Loaded:
    """The end of a restore.

    `match.length` may be shorter than what was asked (0 at worst): a block that turned out
    damaged or gone is a miss, never an error. `blocks` are in token order inside each group.
    """

    ticket: Ticket
    match: Match
    blocks: tuple[Block, ...]
    elapsed_ms: float


@dataclass(frozen=True, slots=True)
class TierStats:
    """Counters of one tier since it was opened; bytes are what it keeps, in its own form."""

    name: str
    blocks: int = 0
    bytes: int = 0
    hits: int = 0
    misses: int = 0
    stored: int = 0
    evicted: int = 0
    damaged: int = 0
    refused: int = 0
    errors: int = 0


class Tier(Protocol):
    """One place where blocks lie. Calls may block and may come from any thread.

    A tier is a cache: it may forget anything at any time and never raises for that. What it does
    return is exactly what was put: same key, same ids, same bytes. `kvstore.testing` has the suite.
    """

    name: str

    def leading(self, keys: Sequence[BlockKey]) -> int:
        """How many of `keys`, counted from the first, are held without a gap."""
        ...

    def get(self, keys: Sequence[BlockKey]) -> list[Block | None]:
        """The blocks, None where one is missing or damaged. Copies: valid for ever."""
        ...

    def put(self, blocks: Sequence[Block]) -> int:
        """Stores what it can and says how many it holds now; an existing key is left as it is."""
        ...

    def held(self) -> list[BlockKey]:
        """Everything it holds now, from memory."""
        ...

    def discard(self, keys: Sequence[BlockKey]) -> None:
        """Forgets these; unknown keys are fine."""
        ...

    def stats(self) -> TierStats:
        """A snapshot; cheap, and never waits for a write."""
        ...

    def close(self) -> None:
        """Flushes and frees. Idempotent; later calls behave like an empty tier."""
        ...


@dataclass(frozen=True, slots=True)
class StoreStats:
    """What the whole store did: one entry a tier, and the queue behind the reply."""

    tiers: tuple[TierStats, ...] = ()
    offered: int = 0
    dropped: int = 0
    queued_bytes: int = 0
    extra: tuple[tuple[str, int], ...] = field(default=())


class PrefixStore(Protocol):
    """What the engine sees. Only the engine's thread calls it; no call blocks on a tier's I/O."""

    def match(self, chain: Chain) -> Match:
        """The longest restorable prefix of the chain; a look-up in memory."""
        ...

    def load(self, match: Match, chain: Chain) -> Ticket:
        """Starts to bring the match's blocks; the result comes out of `poll`.

        The caller leaves `chain` as it is until then.
        """
        ...

    def poll(self) -> list[Loaded]:
        """Restores that ended since the last call."""
        ...

    def missing(self, chain: Chain, length: int) -> list[BlockKey]:
        """The blocks that the prefix of `length` tokens needs and the store does not hold."""
        ...

    def offer(self, blocks: Sequence[Block]) -> int:
        """Keeps blocks in memory now, queues them for the slower tiers; how many were queued.

        A full queue drops and counts. What a restore uses later and a slower tier lacks, because
        of that or because it has dropped it since, is queued again.
        """
        ...

    def stats(self) -> StoreStats:
        """A snapshot; cheap."""
        ...

    def close(self) -> None:
        """Writes what is queued, within a bound, and frees everything. Idempotent."""
        ...
