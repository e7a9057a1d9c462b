"""The KV of one sequence while it is being worked on: a table of the device's pages.

The tables of all sequences lie together (`kvstore.tables`), so that a step reads them in one go.
Sliding groups let go of pages that neither attention nor the next kept prefix can ask for, so their
memory does not grow with the context.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from kvstore.api import BlockKey, Chain, Group
    from kvstore.device import DeviceTier, Leaving
    from kvstore.tables import GroupRows

__all__ = ["NoRoom", "SequenceKV", "pages_needed"]


class NoRoom(Exception):
    """The device has no page left for this sequence now."""


def pages_needed(group: Group, tokens: int, step_tokens: int, block_tokens: int) -> int:
    """The most pages that a sequence of `tokens` holds in a group at any time.

    It is fed at most `step_tokens` at once.
    """
    if group.window is not None:
        # The window before the first new token, the new ones, a page of slack, two cut pages.
        tokens = min(tokens, group.window + step_tokens + 3 * block_tokens)
    return -(-tokens // block_tokens)


class SequenceKV:
    """K and V of one sequence, empty at first; `length` tokens are in it.

    After `n` tokens were added, each sliding group still holds the window and one page before the
    first of them, so every prefix that ends in those `n` tokens or shortly before can be kept (a
    stop string takes the last tokens of a reply back). Not thread-safe.
    `free` gives the pages back; nothing may be asked of it after that.
    """

    def __init__(self, arena: DeviceTier) -> None:
        self.arena = arena
        self.length = 0
        self._tables = arena.tables
        self.row = self._tables.take()
        """Its row in the pool's page tables."""
        self._freed = False
        self._roomy = 0
        """There is room up to this length, in pages that this sequence alone writes."""
        self._step = arena.layout.block_tokens

    def first_held(self, group: int) -> int:
        """The first token of a group that is still here."""
        return int(self._tables.groups[group].first[self.row]) * self._step

    def reserve(self, tokens: int) -> None:
        """Makes room for `tokens` more; lets go of pages that no layer can read again.

        Raises `NoRoom` when the device has too few pages; another try may succeed later. Room that
        was made stays until it is filled: who shares its last page later copies it before writing.
        """
        if self.length + tokens <= self._roomy:
            return
        pages = -(-(self.length + tokens) // self._step)
        for group in self.arena.layout.groups:
            table = self._tables.groups[group.id]
            self._let_go(group, table)
            if self.length % self._step:
                slots = table.of(self.row)
                tail = self.length // self._step - table.first[self.row]
                within = self.length % self._step
                slot = self.arena.append_slot(group.id, int(slots[tail]), within)
                if slot is None:
                    raise NoRoom
                slots[tail] = slot
            lacking = pages - int(table.first[self.row]) - int(table.counts[self.row])
            if lacking > 0:
                taken = self.arena.take(group.id, lacking)
                if taken is None:
                    raise NoRoom
                table.extend(self.row, taken)
        self._roomy = pages * self._step

    def reserve_for(self, tokens: int, guesses: list[int]) -> list[int] | None:
        """`reserve` for the tokens and the guesses, or the tokens alone; the guesses that fit.

        None when there is no room even for the tokens.
        """
        try:
            self.reserve(tokens + len(guesses))
        except NoRoom:
            return self.reserve_for(tokens, []) if guesses else None
        return guesses

    def advance(self, tokens: int) -> None:
        """Counts `tokens` that every owning layer has written."""
        self.length += tokens
        if tokens > self._step:
            self._roomy = 0  # the next `reserve` lets go of what lies before the window by now

    def retract(self, tokens: int) -> None:
        """Takes back the newest `tokens` of the latest `advance`; others take their places."""
        self.length -= tokens

    def adopt(self, blocks: Sequence[BlockKey], slots: Mapping[BlockKey, int], length: int) -> None:
        """Takes over the held pages of a prefix of `length` tokens, made of `blocks`.

        The sequence is empty; the blocks of a group are in token order. Raises `ValueError` when
        they do not make that prefix; the pages are then still the caller's.
        """
        if self.length:
            raise ValueError("only an empty sequence can be restored")
        tables: dict[int, tuple[int, list[int]]] = {}
        for group in self.arena.layout.groups:
            run = [key for key in blocks if key.group == group.id]
            first = self.arena.layout.first_needed(group, length)
            starts = list(range(first, length, self._step))
            if [key.start for key in run] != starts or run[-1].prefix.length != length:
                raise ValueError(f"group {group.id} does not hold the prefix of {length} tokens")
            tables[group.id] = first // self._step, [slots[key] for key in run]
        for id, (first, held) in tables.items():
            self._tables.groups[id].set(self.row, first, held)
        self.length = length

    def payloads(self, spans: Sequence[tuple[int, int, int]]) -> Leaving:
        """Starts to bring the payloads of spans, each a group and tokens [start, end) of one page.

        See `kvstore.api.Block` for the bytes, `DeviceTier.payloads` for when they are there.
        """
        return self.arena.payloads(
            [(group, self._slot(group, start), end - start) for group, start, end in spans]
        )

    def publish(self, keys: Iterable[BlockKey], chain: Chain) -> None:
        """Lets others find blocks of this sequence on the device."""
        self.arena.publish(
            (
                key,
                self._slot(key.group, key.start),
                chain.ids(key.start, key.prefix.length),
                chain.owner(key),
                chain.is_shared(key),
            )
            for key in keys
        )

    def free(self) -> None:
        """Gives every page back. Idempotent."""
        if self._freed:
            return
        self._freed = True
        for id, table in self._tables.groups.items():
            self.arena.release(id, table.of(self.row).tolist())
        self._tables.give_back(self.row)

    def _slot(self, group: int, start: int) -> int:
        table = self._tables.groups[group]
        return int(table.slots[self.row, start // self._step - table.first[self.row]])

    def _let_go(self, group: Group, table: GroupRows) -> None:
        if group.window is None:
            return
        # The shortest prefix that may still be kept ends a page before the next token.
        shortest = max(0, self.length + 1 - self._step)
        first = self.arena.layout.first_needed(group, shortest) // self._step
        gone = min(first - int(table.first[self.row]), int(table.counts[self.row]))
        if gone > 0:
            self.arena.release(group.id, table.drop(self.row, gone))
