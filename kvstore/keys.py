"""Keys of every prefix of a token sequence.

Two hashes, for two jobs:

- the *rolling* value, one per token, says in O(1) whether a prefix of any length may be stored:
  r(0) = 0, r(i+1) = r(i) + (token + 1) * base**i mod (2**61 - 1). It is an index and no more;
  equal values prove nothing.
- the *digest*, keyed BLAKE2b chained over blocks, is the authority:
  d(0) = b"", d(n) = BLAKE2b(d(start) + tokens[start:n] as uint32 LE), start = the last block
  boundary before n. Any length costs at most one block of hashing.

Both keys derive from the space, and so from the tenant's secret: nobody outside can aim for a
collision, and nothing depends on the process.

The sum form (Karp and Rabin 1987, read from the other end) lets numpy make all values in one pass:
61-bit products are put together from halves, as uint64 holds no 122-bit number.
"""

from __future__ import annotations

import functools
import hashlib
import sys
from array import array
from itertools import compress
from typing import TYPE_CHECKING

import numpy as np

from kvstore.api import PrefixKey

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Iterator

    from numpy.typing import NDArray

    from kvstore.api import BlockKey, Layout, Space

    Words = NDArray[np.uint64]

__all__ = ["MODULUS", "TokenChain", "owner_tag"]

MODULUS = (1 << 61) - 1
DIGEST_BYTES = 16
MAX_TOKEN = (1 << 31) - 2
_P = np.uint64(MODULUS)
_LOW30, _LOW31 = np.uint64((1 << 30) - 1), np.uint64((1 << 31) - 1)
_30, _31, _61 = np.uint64(30), np.uint64(31), np.uint64(61)


def owner_tag(tenant_salt: bytes, name: str) -> bytes:
    """16 bytes that stand for an owner (a conversation, a persona revision) inside one tenant.

    The name cannot be read back from it without the tenant's secret.
    """
    secret = hashlib.sha256(tenant_salt).digest()
    tag = hashlib.blake2b(
        name.encode(), digest_size=DIGEST_BYTES, key=secret, person=b"greenroom-owner"
    )
    return tag.digest()


class TokenChain:
    """Implements `kvstore.api.Chain`; not thread-safe while it is extended."""

    def __init__(
        self,
        space: Space,
        layout: Layout,
        tokens: Iterable[int] = (),
        *,
        owner: bytes = b"",
        shared: int = 0,
        shared_owner: bytes = b"",
    ) -> None:
        """The first `shared` tokens are `shared_owner`'s, the rest are `owner`'s."""
        self._owner, self._shared, self._shared_owner = owner, shared, shared_owner
        self._space = space.digest()
        self._block = layout.block_tokens
        secret = hashlib.sha256(space.tenant_salt).digest()
        self._key = hashlib.blake2b(self._space, key=secret, person=b"greenroom-digest").digest()
        base = hashlib.blake2b(self._space, key=secret, person=b"greenroom-roll").digest()
        self._powers = _powers(int.from_bytes(base[:8], "little") % (MODULUS - 2) + 2)
        self._tokens = array("I")
        self._rolling = array("Q", [0])
        # The keys of every whole block's end, from length 0: they are asked for again and again.
        self._whole = [PrefixKey(self._space, b"", 0, 0)]
        self.extend(tokens)

    @property
    def tokens(self) -> array[int]:
        """The ids, in order, as unsigned 32-bit integers; do not mutate."""
        return self._tokens

    @property
    def space(self) -> bytes:
        """The digest of the space."""
        return self._space

    def extend(self, tokens: Iterable[int]) -> None:
        """Appends `k` tokens in O(k). Raises `OverflowError` for an id outside 31 bits."""
        more = array("I", tokens)
        if not more:
            return
        ids = np.frombuffer(more, np.uint32)
        if ids.max() > MAX_TOKEN:
            raise OverflowError(f"token id {ids.max()} is outside 31 bits")
        at = len(self._tokens)
        rolled = _roll(self._powers.run(at, at + len(more)), ids, self._rolling[-1])
        self._rolling.frombytes(rolled.tobytes())
        self._tokens.extend(more)
        while (end := len(self._whole) * self._block) <= len(self._tokens):
            digest = self._digest(end - self._block, end)
            self._whole.append(PrefixKey(self._space, digest, end, self._rolling[end]))

    def ids(self, start: int, end: int) -> bytes:
        """Tokens [start, end) as uint32 little-endian."""
        run = self._tokens[start:end]
        if sys.byteorder == "big":
            run.byteswap()
        return run.tobytes()

    def owner(self, key: BlockKey) -> bytes:
        """Whose a block is: it is shared while all of its prefix is."""
        return self._shared_owner if self.is_shared(key) else self._owner

    def is_shared(self, key: BlockKey) -> bool:
        """Whether many chats begin with a block of this chain."""
        return key.prefix.length <= self._shared

    def rolling(self, length: int) -> int:
        """The index value of the first `length` tokens."""
        return self._rolling[length]

    def known(self, values: Container[int]) -> Iterator[int]:
        """The lengths whose rolling value is among `values`, longest first, as they are asked."""
        found = map(values.__contains__, reversed(self._rolling))
        return compress(range(len(self._tokens), 0, -1), found)

    def key(self, length: int) -> PrefixKey:
        """The key of the first `length` tokens. Raises `IndexError` when there are fewer."""
        if not 0 <= length <= len(self._tokens):
            raise IndexError(f"a chain of {len(self._tokens)} tokens has no prefix of {length}")
        whole, rest = divmod(length, self._block)
        if not rest:
            return self._whole[whole]
        digest = self._digest(whole * self._block, length)
        return PrefixKey(self._space, digest, length, self._rolling[length])

    def _digest(self, start: int, end: int) -> bytes:
        before = self._whole[start // self._block].digest
        h = hashlib.blake2b(before, digest_size=DIGEST_BYTES, key=self._key)
        h.update(self.ids(start, end))
        return h.digest()


class _Powers:
    """base**i mod p, as far as anybody has asked."""

    def __init__(self, base: int) -> None:
        self._base = base
        self._made: Words = np.ones(1, np.uint64)

    def run(self, start: int, end: int) -> Words:
        """Powers [start, end)."""
        made = self._made
        if end > len(made):
            more = []
            last = int(made[-1])
            for _ in range(max(end, 2 * len(made), 1024) - len(made)):
                last = last * self._base % MODULUS
                more.append(last)
            # One assignment: a reader in another thread sees the old powers or the new ones.
            self._made = made = np.concatenate([made, np.array(more, np.uint64)])
        return made[start:end]


_powers = functools.lru_cache(maxsize=1024)(_Powers)


def _roll(powers: Words, ids: NDArray[np.uint32], before: int) -> Words:
    """r(at + 1) ... r(at + n) for n ids, where `before` is r(at) and `powers` start at `at`."""
    x = ids.astype(np.uint64) + np.uint64(1)  # at most 31 bits
    high = _reduced((powers >> _30) * x)  # times 2**30 follows; 2**61 is 1
    terms = (high >> _31) + ((high & _LOW31) << _30) + (powers & _LOW30) * x
    terms = _reduced(terms)
    terms[0] = (int(terms[0]) + before) % MODULUS
    # The sums of the halves stay far below 64 bits for any context.
    high, low = np.cumsum(terms >> _31), np.cumsum(terms & _LOW31)
    summed: Words = ((high >> _30) + ((high & _LOW30) << _31) + low) % _P
    return summed


def _reduced(values: Words) -> Words:
    """Congruent modulo p, and at most a little above it."""
    reduced: Words = (values & _P) + (values >> _61)
    return reduced
