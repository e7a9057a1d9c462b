"""The device's pool: pages of KV where attention reads them, and the first tier of the store.

One arena a group, `uint8 [slots, page_bytes]`; a page is the payload of a whole block, and a
shorter block is the same runs cut short (docs/kv-record.md). On a CPU the arena is ordinary memory
that the system commits when it is first written; with CUDA it lies on the card, and what comes and
goes is copied beside the steps (`kvstore.copies`).

The engine's thread and the store's readers come here together: one lock.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from kvstore.api import TierStats
from kvstore.copies import PageCopies
from kvstore.pool import Pool
from kvstore.room import DeviceRoom
from kvstore.tables import PageTables

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from kvstore.api import Block, BlockKey, Group, Layout, Scope
    from kvstore.copies import Stage

    Bytes = NDArray[np.uint8]

__all__ = ["DeviceTier", "Leaving", "slot_counts"]

TYPICAL_TOKENS = 4096
PAGE = 4096


def slot_counts(layout: Layout, max_bytes: int) -> dict[int, int]:
    """Slots for each group, in the proportion that a chat of 4,096 tokens needs them.

    Raises `ValueError` when not even one such chat has room.
    """
    step = layout.block_tokens
    pages = {
        g.id: -(-TYPICAL_TOKENS // step)
        if g.window is None
        else min(TYPICAL_TOKENS, g.window + 2 * step) // step + 1
        for g in layout.groups
    }
    one = sum(pages[g.id] * step * g.bytes_per_token for g in layout.groups)
    if max_bytes < one:
        raise ValueError(f"a device pool of {max_bytes} bytes holds no chat; one takes {one}")
    return {group: max_bytes * count // one for group, count in pages.items()}


class Leaving:
    """Payloads on their way from the device to the host, where they take `size` bytes."""

    def __init__(
        self, read: Callable[[], list[memoryview]], size: int, done: torch.cuda.Event | None
    ) -> None:
        self._read, self.size, self._done = read, size, done

    @property
    def is_here(self) -> bool:
        """Whether `payloads` need not wait."""
        return self._done is None or self._done.query()  # type: ignore[no-untyped-call]

    def payloads(self) -> list[memoryview]:
        """The payloads, in order; waits for them."""
        if self._done is not None:
            self._done.synchronize()
        return self._read()


class DeviceTier:
    """Implements `kvstore.api.Tier`, and gives its slots to running sequences.

    `slots` says how many pages each group has. `pages[group]` is that group's arena; `tables` say
    which of them a running sequence holds, and only the engine's thread touches them.
    """

    name = "device"
    near = True

    def __init__(
        self,
        layout: Layout,
        slots: dict[int, int],
        *,
        device: str = "cpu",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.layout = layout
        self.device = torch.device(device)
        self._on_cpu = self.device.type == "cpu"
        self._groups = {group.id: group for group in layout.groups}
        self._clock = clock
        self._lock = threading.RLock()
        self._pool = Pool(slots)
        self.tables = PageTables(self._groups)
        self._ids: dict[BlockKey, bytes] = {}
        self._counts = TierStats(self.name)
        self._closed = False
        self.pages: dict[int, Tensor] = {}
        self._arrays: dict[int, Bytes] = {}
        self._views: dict[int, list[memoryview]] = {}  # each page, made once
        for group in layout.groups:
            shape = (slots[group.id], layout.block_tokens * group.bytes_per_token)
            if self._on_cpu:
                self._arrays[group.id] = array = _aligned(shape)
                self._views[group.id] = [page.data for page in array]
                self.pages[group.id] = torch.from_numpy(array)
            else:
                self.pages[group.id] = torch.zeros(shape, dtype=torch.uint8, device=self.device)
        self._copies = None if self._on_cpu else PageCopies(self.pages)

    # What running sequences use.

    def size(self, group: int) -> int:
        """How many slots a group has."""
        return self._pool.size(group)

    def bytes_per_token(self, group: int) -> int:
        """The size of one token's KV in a group."""
        return self._groups[group].bytes_per_token

    def take(self, group: int, count: int) -> list[int] | None:
        """Fresh slots for the caller alone; None when so many are not to be had now."""
        with self._lock:
            taken = self._pool.take(group, count, self._clock())
            evicted = self._pool.evicted()
            for key in evicted:
                del self._ids[key]
            self._count(evicted=len(evicted))
            return taken

    def pin(self, keys: Sequence[BlockKey]) -> list[int] | None:
        """The slots of blocks that are here, held until `release`; None when one is gone."""
        with self._lock:
            slots = self._pool.pin(keys)
            self._count(hits=len(keys) if slots is not None else 0)
            return slots

    def release(self, group: int, slots: Sequence[int]) -> None:
        """Gives slots back; those that hold named blocks are kept while there is room."""
        with self._lock:
            self._pool.release(group, slots, self._clock())

    def publish(self, named: Iterable[tuple[BlockKey, int, bytes, bytes, bool]]) -> None:
        """Names what held slots begin with, so that others find it.

        Each is a block, its slot, its token ids, its owner and whether that is many chats'.
        """
        with self._lock:
            before = len(self._ids)
            for key, slot, ids, owner, shared in named if not self._closed else ():
                if self._pool.name(key, slot, owner, shared=shared):
                    self._ids[key] = ids
            stored = len(self._ids) - before
            self._count(stored=stored)

    def append_slot(self, group: int, slot: int, tokens: int) -> int | None:
        """Where to write behind the first `tokens` tokens of a held page: it, or a held copy.

        A page that others read behind is copied, and the caller's hold moves to the copy; None
        when there is no slot for that.
        """
        with self._lock:
            if self._pool.may_append(group, slot, tokens):
                return slot
            taken = self.take(group, 1)
            if taken is None:
                return None
            pages = self.pages[group]
            pages[taken[0]] = pages[slot]
            self._pool.release(group, [slot], self._clock())
            return taken[0]

    def payload(self, group: int, slot: int, tokens: int) -> memoryview:
        """The payload of the first `tokens` tokens of a held page; a copy unless it is all."""
        return self._cut(group, tokens, self._page(group, slot))

    def payloads(self, wanted: Sequence[tuple[int, int, int]]) -> Leaving:
        """Starts to bring payloads of held pages, each a group, a slot and a count of tokens.

        They are the bytes of now, whatever is written to the slots later; on a CPU only until then.
        """
        if self._copies is None:
            here = [self.payload(*each) for each in wanted]
            return Leaving(lambda: here, 0, None)
        stage, done = self._copies.fetch([(group, slot) for group, slot, _ in wanted])

        def read() -> list[memoryview]:
            rows: Counter[int] = Counter()
            found = []
            for group, _, tokens in wanted:
                found.append(self._cut(group, tokens, stage.page(group, rows[group])))
                rows[group] += 1
            return found

        return Leaving(read, stage.size, done)

    def write(self, group: int, slot: int, tokens: int, payload: memoryview) -> None:
        """Puts a payload of `tokens` tokens at the front of a held page; waits for the device."""
        with self._lock:
            if self._on_cpu:
                self.spread(group, tokens, payload, self._arrays[group][slot])
            else:
                page = np.zeros(self.pages[group].shape[1], np.uint8)
                self.spread(group, tokens, payload, page)
                self.pages[group][slot] = torch.from_numpy(page).to(self.device)

    def spread(self, group: int, tokens: int, payload: memoryview, page: Bytes) -> None:
        """Writes a payload of `tokens` tokens as the front of a whole page's bytes."""
        given = np.frombuffer(payload, np.uint8)
        for part, whole in self._runs(self._groups[group], given, page, tokens):
            whole[:] = part

    def stage(self, counts: Mapping[int, int]) -> Stage | None:
        """Pinned memory for so many pages of each group; None on a CPU. Any thread."""
        return None if self._copies is None else self._copies.stage(counts)

    def bring(self, stage: Stage, places: Sequence[tuple[int, int, int]]) -> None:
        """Starts to copy pages of a stage, each a group, a row and a held slot, to the device.

        What is launched later on the caller's stream sees them; the call does not wait.
        """
        assert self._copies is not None
        self._copies.bring(stage, places)

    def room(self) -> DeviceRoom:
        """Where one restore may put its blocks."""
        return DeviceRoom(self)

    def buffer(self, group: int, slot: int) -> memoryview:
        """The page itself, for the caller to write; on a CPU."""
        return self._views[group][slot]

    def retire(self, space: bytes, owner: bytes) -> None:
        """The owner has left: its pages are the first to go."""
        with self._lock:
            self._pool.retire(space, owner)

    # What every tier does.

    def leading(self, keys: Sequence[BlockKey]) -> int:
        # Without the lock: a look-up is atomic, and any answer may be out of date at once.
        for index, key in enumerate(keys):
            if key not in self._pool:
                return index
        return len(keys)

    def fetch(self, keys: Sequence[BlockKey], into: Sequence[memoryview]) -> list[bytes | None]:
        ids: list[bytes | None] = []
        for key, buffer in zip(keys, into, strict=True):
            slots = self.pin([key])
            size = key.tokens * self._groups[key.group].bytes_per_token if slots else 0
            if not slots or size != len(buffer):
                ids.append(None)
                self._count(misses=1)
            else:
                buffer[:] = self.payload(key.group, slots[0], key.tokens)
                ids.append(self._ids.get(key))
            if slots:
                self.release(key.group, slots)
        return ids

    def put(self, blocks: Sequence[Block]) -> int:
        for block in blocks:
            key = block.key
            with self._lock:
                if self._closed or key in self._pool:
                    continue
                taken = self.take(key.group, 1)
                if taken is None:
                    self._count(refused=1)
                    continue
                self.write(key.group, taken[0], key.tokens, memoryview(block.payload))
                self.publish([(key, taken[0], block.ids, block.owner, False)])
                self.release(key.group, taken)
        return sum(block.key in self._pool for block in blocks)

    def held(self) -> list[BlockKey]:
        with self._lock:
            return self._pool.names

    def discard(self, keys: Sequence[BlockKey]) -> None:
        with self._lock:
            for key in keys:
                self._ids.pop(key, None)
            self._pool.discard(keys, self._clock())

    def purge(self, scope: Scope) -> int:
        """Deletes and overwrites; a page in use is overwritten by nobody, but is found no more."""
        with self._lock:
            gone = self._pool.scope(scope)
            for key in gone:
                self._ids.pop(key, None)
            for group, slot in self._pool.discard(gone, self._clock()):
                self.pages[group][slot].zero_()
            return len(gone)

    def stats(self) -> TierStats:
        with self._lock:
            names = self._pool.names
            size = {(key.group, self._pool.where(key)) for key in names}
            held = sum(self.pages[group].shape[1] for group, _ in size)
            return replace(self._counts, blocks=len(names), bytes=held)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self.discard(self._pool.names)

    def _page(self, group: int, slot: int) -> Bytes:
        arrays = (
            self._arrays[group]
            if self._on_cpu
            else self.pages[group][slot : slot + 1].cpu().numpy()
        )
        page: Bytes = arrays[slot if self._on_cpu else 0]
        return page

    def _cut(self, group: int, tokens: int, page: Bytes) -> memoryview:
        """The payload of a page's first tokens; a copy unless it is all."""
        if tokens == self.layout.block_tokens:
            return page.data
        out = np.empty(tokens * self._groups[group].bytes_per_token, np.uint8)
        for part, whole in self._runs(self._groups[group], out, page, tokens):
            part[:] = whole
        return out.data

    def _runs(
        self, group: Group, payload: Bytes, page: Bytes, tokens: int
    ) -> Iterable[tuple[Bytes, Bytes]]:
        """The runs of a short payload beside their places in the page, [layers, bytes] each."""
        layers = len(group.layers)
        short = payload.reshape(layers, -1)
        whole = page.reshape(layers, -1)
        at = 0
        for part in group.parts:
            start = at * self.layout.block_tokens
            yield (
                short[:, at * tokens : (at + part) * tokens],
                whole[:, start : start + part * tokens],
            )
            at += part

    def _count(
        self, *, hits: int = 0, misses: int = 0, stored: int = 0, evicted: int = 0, refused: int = 0
    ) -> None:
        c = self._counts
        self._counts = replace(
            c,
            hits=c.hits + hits,
            misses=c.misses + misses,
            stored=c.stored + stored,
            evicted=c.evicted + evicted,
            refused=c.refused + refused,
        )


def _aligned(shape: tuple[int, int]) -> Bytes:
    """Zeros at the start of a page of memory.

    calloc's: memory that nobody has written yet costs nothing. numpy's own starts 16 bytes into a
    page, and copies to there from a page's start run at a quarter of the speed on some machines.
    """
    size = shape[0] * shape[1]
    raw = np.zeros(size + PAGE, np.uint8)
    start = -raw.ctypes.data % PAGE
    return raw[start : start + size].reshape(shape)
