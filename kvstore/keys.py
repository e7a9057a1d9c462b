"""Keys of every prefix of a token sequence.

Two hashes, for two jobs:

- the *rolling* value, one per token, says in O(1) whether a prefix of any length may be stored:
  r(0) = 0, r(i+1) = (r(i) * base + token + 1) mod (2**61 - 1). It is an index and no more; equal
  values prove nothing.
- the *digest*, keyed BLAKE2b chained over blocks, is the authority:
  d(0) = b"", d(n) = BLAKE2b(d(start) + tokens[start:n] as uint32 LE), start = the last block
  boundary before n. Any length costs at most one block of hashing.

Both keys derive from the space, and so from the tenant's secret: nobody outside can aim for a
collision, and nothing depends on the process.
"""

from __future__ import annotations

import hashlib
import sys
from array import array
from typing import TYPE_CHECKING

from kvstore.api import PrefixKey

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from kvstore.api import Layout, Space

__all__ = ["MODULUS", "TokenChain"]

MODULUS = (1 << 61) - 1
DIGEST_BYTES = 16


class TokenChain:
    """Implements `kvstore.api.Chain`; not thread-safe while it is extended."""

    def __init__(self, space: Space, layout: Layout, tokens: Iterable[int] = ()) -> None:
        self._space = space.digest()
        self._block = layout.block_tokens
        secret = hashlib.sha256(space.tenant_salt).digest()
        self._key = hashlib.blake2b(self._space, key=secret, person=b"greenroom-digest").digest()
        base = hashlib.blake2b(self._space, key=secret, person=b"greenroom-roll").digest()
        self._base = int.from_bytes(base[:8], "little") % (MODULUS - 2) + 2
        self._tokens: list[int] = []
        self._rolling: list[int] = [0]
        self._digests: list[bytes] = [b""]  # of every whole block's end, from length 0
        self.extend(tokens)

    @property
    def tokens(self) -> Sequence[int]:
        """The ids, in order."""
        return self._tokens

    def extend(self, tokens: Iterable[int]) -> None:
        """Appends `k` tokens in O(k). Raises `OverflowError` for an id outside 32 bits."""
        more = array("I", tokens).tolist()
        base, r = self._base, self._rolling[-1]
        self._rolling += [r := (r * base + token + 1) % MODULUS for token in more]
        self._tokens.extend(more)
        while len(self._digests) * self._block <= len(self._tokens):
            end = len(self._digests) * self._block
            self._digests.append(self._digest(end - self._block, end))

    def rolling(self, length: int) -> int:
        """The index value of the first `length` tokens."""
        return self._rolling[length]

    def key(self, length: int) -> PrefixKey:
        """The key of the first `length` tokens. Raises `IndexError` when there are fewer."""
        if not 0 <= length <= len(self._tokens):
            raise IndexError(f"a chain of {len(self._tokens)} tokens has no prefix of {length}")
        whole, rest = divmod(length, self._block)
        digest = self._digest(whole * self._block, length) if rest else self._digests[whole]
        return PrefixKey(self._space, digest, length, self._rolling[length])

    def _digest(self, start: int, end: int) -> bytes:
        before = self._digests[start // self._block]
        run = array("I", self._tokens[start:end])
        h = hashlib.blake2b(before, digest_size=DIGEST_BYTES, key=self._key)
        h.update(_little_endian(run))
        return h.digest()


def _little_endian(run: array[int]) -> bytes:
    if sys.byteorder == "big":
        run.byteswap()
    return run.tobytes()
