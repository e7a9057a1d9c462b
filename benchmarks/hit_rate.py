"""Token hit rate of many conversations in round robin, by the size of the device's pool.

Everybody speaks in turn and nobody leaves: the pattern that makes least recently used forget each
conversation just before it comes back. Two policies over the same slots and the same requests: the
store's own (`kvstore.retention`), and plain least recently used over blocks, as in most engines.
Nothing is computed; KV is one byte a token.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

from backends.local.paged import NoRoom, SequenceKV
from backends.local.prefix import Prefixes, Whose
from kvstore.api import Group, Layout, Space
from kvstore.device import DeviceTier
from kvstore.host import HostTier
from kvstore.tiered import TieredStore

__all__ = ["hit_rates"]

LAYOUT = Layout((Group(0, (0,), None, (1,)), Group(1, (1,), 512, (1,))))
"""gemma-3's horizons: one group that keeps everything, one with a window of 512 tokens."""
STEP = LAYOUT.block_tokens
PAUSE_SECONDS = 0.5
"""Between two turns of anybody: with 64 conversations each comes back after half a minute."""


@dataclass(slots=True)
class _Session:
    number: int
    tokens: list[int] = field(default_factory=list)

    def speak(self, count: int) -> None:
        start = len(self.tokens)
        self.tokens += [self.number * 100_003 + start + i for i in range(count)]


def hit_rates(
    *, sessions: int, start_tokens: int, turn_tokens: int, turns: int, parts: tuple[float, ...]
) -> dict[str, dict[str, float]]:
    """The share of prompt tokens found on the device, by policy and pool size.

    `parts` are the pool's sizes as parts of what all conversations would hold at the end. The
    first half of the turns warms up and is not counted.
    """
    longest = start_tokens + turn_tokens * turns
    needed = {
        group.id: sessions * (-(-(min(longest, (group.window or longest) + STEP)) // STEP) + 1)
        for group in LAYOUT.groups
    }
    ours, lru = {}, {}
    for part in parts:
        spare = -(-longest // STEP) + 4  # whoever speaks must fit beside what is kept
        slots = {group: max(spare, round(count * part)) for group, count in needed.items()}
        people = [_Session(number) for number in range(sessions)]
        ours[f"{part:g}"] = _ours(people, slots, start_tokens, turn_tokens, turns)
        people = [_Session(number) for number in range(sessions)]
        lru[f"{part:g}"] = _lru(people, slots, start_tokens, turn_tokens, turns)
    return {"greenroom": ours, "lru_blocks": lru}


def _ours(
    people: list[_Session], slots: dict[int, int], first: int, more: int, turns: int
) -> float:
    now = 0.0
    device = DeviceTier(LAYOUT, slots, clock=lambda: now)
    store = TieredStore(LAYOUT, device, HostTier(0))
    space = Space("m", "w", "t", "l", "int8", b"bench")
    prefixes = Prefixes(store, device, lambda _: space)
    asked = hit = 0
    for turn in range(turns):
        for person in people:
            now += PAUSE_SECONDS
            person.speak(more if turn else first)
            whose = Whose("bench", str(person.number))
            prefix = prefixes.look_up(whose, [*person.tokens, 0])
            kv = SequenceKV(device)
            arrivals = prefixes.arrived()
            while not arrivals:
                arrivals = prefixes.arrived()
            cached = prefixes.restore(arrivals[0], kv)
            try:
                kv.reserve(len(person.tokens) - cached)
                kv.advance(len(person.tokens) - cached)
                prefixes.keep(prefix, kv, person.tokens)
            except NoRoom:
                cached = 0
            kv.free()
            if turn >= turns // 2:
                asked, hit = asked + len(person.tokens), hit + cached
    store.close()
    return round(hit / asked, 4)


def _lru(people: list[_Session], slots: dict[int, int], first: int, more: int, turns: int) -> float:
    """One queue for every block of every group, freed windows first in line, as pools have it."""
    room = sum(slots.values())
    held: OrderedDict[tuple[int, int, int], None] = OrderedDict()  # session, group, block
    asked = hit = 0
    for turn in range(turns):
        for person in people:
            before = len(person.tokens) // STEP
            person.speak(more if turn else first)
            length = len(person.tokens)
            cached = 0
            for blocks in range(before, 0, -1):
                globals_ = [(person.number, 0, b) for b in range(blocks)]
                start = LAYOUT.first_needed(LAYOUT.groups[1], blocks * STEP) // STEP
                locals_ = [(person.number, 1, b) for b in range(start, blocks)]
                if all(key in held for key in globals_ + locals_):
                    cached = blocks * STEP
                    break
            whole = length // STEP
            first_local = LAYOUT.first_needed(LAYOUT.groups[1], length) // STEP
            # A window's blocks are freed while the turn runs, the rest when it ends.
            used = [(person.number, 1, b) for b in range(first_local, whole)]
            used += [(person.number, 0, b) for b in range(whole)]
            for key in used:
                held.pop(key, None)
                held[key] = None
            while len(held) > room:
                held.popitem(last=False)
            if turn >= turns // 2:
                asked, hit = asked + length, hit + cached
    return round(hit / asked, 4)
