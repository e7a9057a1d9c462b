"""The contracts of the KV store. Standard library only.

Three levels, from the engine down:

    PrefixStore     what the engine sees: match, load, poll, missing, offer; nothing here blocks
    Tier            one place where blocks lie (device, host memory, disk): blocking, thread-safe
    Block           the bytes of one layer group over one run of tokens

A prefix of `p` tokens is restorable when, for every group, the blocks that its attention reads are
there: all of [0, p) for a global group, only [p - window, p) for a local one (rounded down to a
block). Layers that read another layer's KV belong to no group and own no bytes.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Iterator, Sequence

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
    "Room",
    "Scope",
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
class Scope:
    """What to delete: the blocks that `owner` put into one space, or a whole space (a tenant).

    `owner` is an `owner_tag` of `kvstore.keys`: a persona revision or a conversation.
    """

    space: bytes
    owner: bytes | None = None

    def holds(self, block: Block) -> bool:
        """Whether the block goes with this scope."""
        return block.key.prefix.space == self.space and self.owner in (None, block.owner)


@dataclass(frozen=True, slots=True)
class Group:
    """Layers whose KV is stored together. `window` None is global attention.

    The payload of `n` tokens is, for each of `layers` in order, one run of `n * part` bytes for
    each of `parts` (K codes, V codes, K scales, V scales; docs/kv-record.md).
    """

    id: int
    layers: tuple[int, ...]
    window: int | None
    parts: tuple[int, ...]

    @property
    def bytes_per_token(self) -> int:
        """The size of the K and V of all layers for one token."""
        return len(self.layers) * sum(self.parts)


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


class PrefixKey(NamedTuple):
    """Names a prefix of exactly `length` tokens inside one space.

    `rolling` is an index value of the same tokens (see `kvstore.keys`); `digest` is the authority.
    A tuple, like `BlockKey`, because a restore hashes and compares thousands of them.
    """

    space: bytes
    digest: bytes
    length: int
    rolling: int


class BlockKey(NamedTuple):
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

    `ids` are the token ids of the run, uint32 little-endian, compared on every hit. `payload` is
    the bytes exactly as attention reads them (docs/kv-record.md has the layout); nobody changes
    them while somebody else holds the block; a memoryview is flat and of format "B". `owner` says
    whose deletion takes the block away: 16 bytes, or none for what only a whole tenant's deletion
    takes.
    """

    key: BlockKey
    ids: bytes
    payload: bytes | memoryview
    owner: bytes = b""


class Chain(Protocol):
    """The keys of every prefix of one token sequence, and whose they are (see `kvstore.keys`)."""

    @property
    def tokens(self) -> Sequence[int]:
        """The ids, in order; do not mutate."""
        ...

    def extend(self, tokens: Iterable[int]) -> None:
        """Appends `k` tokens in O(k)."""
        ...

    @property
    def space(self) -> bytes:
        """The digest of the space."""
        ...

    def ids(self, start: int, end: int) -> bytes:
        """The ids of tokens [start, end) as `Block.ids` has them."""
        ...

    def owner(self, key: BlockKey) -> bytes:
        """Whose a block of this chain is, as `Block.owner` has it."""
        ...

    def is_shared(self, key: BlockKey) -> bool:
        """Whether many chats begin with a block of this chain."""
        ...

    def rolling(self, length: int) -> int:
        """The index value of the first `length` tokens."""
        ...

    def known(self, values: Container[int]) -> Iterator[int]:
        """The lengths whose rolling value is among `values`, longest first, 0 left out."""
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
    and a global or a local block of it is gone), `damaged`, `slow`, `no_room`, or `""` (the rest
    was never seen). `tiers` is the store's own note of where each of `blocks` was.
    """

    length: int
    blocks: tuple[BlockKey, ...] = ()
    by_tier: tuple[tuple[str, int], ...] = ()
    miss: str = ""
    tiers: tuple[int, ...] = field(default=(), compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Ticket:
    """A restore in flight; compare by `id`."""

    id: int


class Room(Protocol):
    """Where a restore puts its blocks: slots of the device, or memory. Thread-safe."""

    def take(self, keys: Sequence[BlockKey]) -> Sequence[memoryview] | None:
        """Writable flat buffers of exactly the payloads' sizes; None when there is no room."""
        ...


@dataclass(frozen=True, slots=True)
class Loaded:
    """The end of a restore: every block of `match` is in the room, or was there before.

    `match.length` may be shorter than what was asked (0 at worst): a block that turned out
    damaged, slow or gone is a miss, never an error. Other buffers that the room gave hold
    nothing of use. No tier touches a buffer any more.
    """

    ticket: Ticket
    match: Match
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
    near: bool
    """Whether `leading` answers from this process's memory, at once. A tier that is not near
    (another machine) is asked only behind the engine's back."""

    def leading(self, keys: Sequence[BlockKey]) -> int:
        """How many of `keys`, counted from the first, are held without a gap."""
        ...

    def fetch(self, keys: Sequence[BlockKey], into: Sequence[memoryview]) -> list[bytes | None]:
        """Writes each block's payload into its buffer; gives the block's ids.

        None where a block is missing, damaged or not of the buffer's size; that buffer then holds
        nothing of use.
        """
        ...

    def put(self, blocks: Sequence[Block]) -> int:
        """Stores what it can, copying; says how many it holds now. An existing key stays as is."""
        ...

    def held(self) -> list[BlockKey]:
        """Everything it holds now, from memory; nothing from a tier that is not near."""
        ...

    def discard(self, keys: Sequence[BlockKey]) -> None:
        """Forgets these; unknown keys are fine."""
        ...

    def purge(self, scope: Scope) -> int:
        """Deletes a scope's blocks, bytes included; says how many. Nothing of them is left to find.

        Raises `StoreError` when that could not be done whole.
        """
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
    """What the engine sees. Only the engine's thread calls it; no call blocks on a tier's I/O.

    The first tier is where attention reads (the device): the engine puts blocks there itself.
    """

    def match(self, chain: Chain) -> Match:
        """The longest restorable prefix; a look-up in memory."""
        ...

    def load(
        self, match: Match, chain: Chain, room: Room, boundaries: Sequence[int] = ()
    ) -> Ticket:
        """Starts to bring the match's blocks that the device lacks; the end comes out of `poll`.

        Tiers that are not near are asked for more than the match at block ends and `boundaries`
        (message ends, in tokens). The caller leaves `chain` as it is until then.
        """
        ...

    @property
    def asks_far(self) -> bool:
        """Whether `load` may find more than `match` did."""
        ...

    def poll(self) -> list[Loaded]:
        """Restores that ended since the last call."""
        ...

    def missing(self, chain: Chain, length: int) -> list[BlockKey]:
        """The blocks that the prefix of `length` tokens needs and host memory does not hold."""
        ...

    def offer(self, blocks: Sequence[Block]) -> int:
        """Keeps blocks in memory now, queues them for the slower tiers; how many either took.

        A full queue drops and counts. What a restore uses later and a slower tier lacks, because
        of that or because it has dropped it since, is queued again.
        """
        ...

    def share(self, space: bytes, owner: bytes) -> None:
        """This owner's blocks are the beginning of many chats: they stay longest."""
        ...

    def prefetch(self, chain: Chain, boundaries: Sequence[int] = ()) -> None:
        """Somebody is about to speak: brings what slower tiers hold of the prefix to memory."""
        ...

    def retire(self, space: bytes, owner: bytes) -> None:
        """Somebody left: their blocks go to the slower tiers and are the first to leave memory."""
        ...

    def purge(self, scope: Scope) -> Ticket:
        """Deletes a scope's blocks from every tier and queue; the end comes out of `purged`."""
        ...

    def purged(self) -> list[tuple[Ticket, int, str]]:
        """Deletions that ended since the last call: blocks deleted, and a problem or ""."""
        ...

    def stats(self) -> StoreStats:
        """A snapshot; cheap."""
        ...

    def close(self) -> None:
        """Writes what is queued, within a bound, and frees everything. Idempotent."""
        ...
