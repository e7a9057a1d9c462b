"""Blocks on their way from the device to the store, in the order in which they were sent.

A device copies them beside its steps; whoever comes by hands over to the store what has arrived. On
a CPU they are there at once.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kvstore.api import Block

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backends.local.paged import SequenceKV
    from kvstore.api import BlockKey, Chain, PrefixStore
    from kvstore.device import Leaving

__all__ = ["MOST_BYTES", "Outgoing"]

MOST_BYTES = 256 << 20
"""Pinned memory of what is on its way; more waits for the oldest."""


@dataclass(frozen=True, slots=True)
class _Sent:
    """What a block needs beside its payload: ids and owner."""

    keys: Sequence[BlockKey]
    labels: list[tuple[bytes, bytes]]
    leaving: Leaving


class Outgoing:
    """What was kept and is not in the store's hands. Only the engine's thread calls it."""

    def __init__(self, store: PrefixStore) -> None:
        self._store = store
        self._sent: deque[_Sent] = deque()
        self._keys: set[BlockKey] = set()
        self._bytes = 0

    def __contains__(self, key: BlockKey) -> bool:
        return key in self._keys

    def __bool__(self) -> bool:
        return bool(self._sent)

    def send(self, keys: Sequence[BlockKey], kv: SequenceKV, chain: Chain) -> None:
        """Starts to copy these blocks of `kv`, as they are now."""
        if not keys:
            return
        spans = [(key.group, key.start, key.prefix.length) for key in keys]
        labels = [
            (chain.ids(start, end), chain.owner(key))
            for key, (_, start, end) in zip(keys, spans, strict=True)
        ]
        leaving = kv.payloads(spans)
        self._sent.append(_Sent(keys, labels, leaving))
        self._keys.update(keys)
        self._bytes += leaving.size
        self.hand_over()
        while self._bytes > MOST_BYTES:
            self._offer(self._sent.popleft())

    def hand_over(self) -> None:
        """Offers to the store what has arrived."""
        while self._sent and self._sent[0].leaving.is_here:
            self._offer(self._sent.popleft())

    def finish(self) -> None:
        """Waits for all and offers it."""
        while self._sent:
            self._offer(self._sent.popleft())

    def _offer(self, sent: _Sent) -> None:
        self._keys.difference_update(sent.keys)
        self._bytes -= sent.leaving.size
        payloads = sent.leaving.payloads()
        self._store.offer(
            [
                Block(key, ids, payload, owner)
                for key, (ids, owner), payload in zip(sent.keys, sent.labels, payloads, strict=True)
            ]
        )
