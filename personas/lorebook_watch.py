"""Which lore comes in at a turn: the rules of V2, V3 and SillyTavern over a chat, pure.

A `Watch` is led through a chat message by message; `turn` says which entries a prompt after the
last of them has. It depends on the chat alone: on no clock, and on no chance but draws seeded by
the chat's id and its length, so that whoever replays the chat finds the same.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections import defaultdict
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from personas.lorebook import Active, Cause, Rejected, Turnout
from personas.persona import KeyLogic

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from personas.lorebook import EntryKeys, Lore
    from personas.persona import LoreEntry

__all__ = ["MOST", "Watch"]

MOST = 256
"""Entries that can come in at one turn. A book that asks for more would stop the server."""

# Looks at an entry in one turn, after which recursion ends. Books have thousands of entries and a
# few steps; one made to stop the server has thousands of steps.
_LOOKS = 50_000
_TOLD = 64  # rejections that one turn tells of


@dataclass(slots=True)
class _Past:
    """What an entry's earlier matches mean for it. Numbers of messages; half-open."""

    sticky_end: int = 0
    cooldown_end: int = 0


class Watch:
    """One chat's lore. `hear` every message in order; `turn` where a reply is to follow.

    `seed` is the chat's id, `greeting` which greeting began it. `fields` are the persona's texts
    that entries may search besides; `recall` gives the text of an entry that others are looked for
    in.
    """

    def __init__(
        self,
        lore: Lore,
        *,
        seed: str,
        greeting: int | None = None,
        fields: Mapping[str, str] | None = None,
        recall: Callable[[LoreEntry], str] = lambda entry: entry.content,
    ) -> None:
        self._lore = lore
        self._seed = seed
        self._greeting = greeting
        self._recall = recall
        self._heard = 0
        self._replies = 0
        self._keys: list[frozenset[int]] = []  # of each message
        self._last: dict[int, int] = {}  # key -> the last message that has it
        self._past: dict[int, _Past] = {}  # entry -> once it has matched
        self._fields = {
            name: lore.index.find(text)
            for name, text in (fields or {}).items()
            if name in lore.sources
        }

    def hear(self, text: str, *, reply: bool) -> None:
        """The chat's next message; `reply`: the character said it. Greetings are replies too."""
        keys = self._lore.index.find(text)
        self._keys.append(keys)
        self._last.update(dict.fromkeys(keys, self._heard))
        self._heard += 1
        self._replies += reply

    def turn(self) -> Turnout:
        """Who comes to a prompt after the last message. Entries remember that they came."""
        return _Turn(self).run()


class _Turn:
    """One turn's activation, step by step of recursion."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self._lore = watch._lore
        self._now = watch._heard
        self._active: dict[int, Active] = {}
        self._rejected: dict[int, Rejected] = {}
        self._settled: set[int] = set()  # drawn or grouped out: no second chance in this turn
        self._recalled: dict[int, str] = {}  # key -> the id of an entry whose text has it

    def run(self) -> Turnout:
        lore, watch = self._lore, self._watch
        past = [at for at in watch._past if at in lore.lasting]
        heard = frozenset[int]().union(*watch._keys[max(0, self._now - lore.furthest) :])
        recent = (at for key in heard for at in lore.by_key.get(key, ()))
        candidates = {*lore.unprompted, *past, *recent}
        spreading = [active for active in lore.permanent if self._spreads(active)]
        step = looks = 0
        while True:
            looks += len(candidates)
            spreading += [
                active for active in self._step(candidates, step) if self._spreads(active)
            ]
            later = bisect_right(lore.levels, step)
            waiting = later < len(lore.levels) and self._recalled
            if (not spreading and not waiting) or looks > _LOOKS or len(self._active) >= MOST:
                break
            for active in spreading:
                for key in lore.index.find(watch._recall(active.entry)):
                    self._recalled.setdefault(key, active.entry.id)
                    candidates.update(lore.by_key.get(key, ()))
            step = step + 1 if spreading else lore.levels[later]
            spreading = []
        for at in self._active:
            self._remember(at)
        order = sorted(self._active, key=lambda at: (lore.entries[at][1].order, at))
        came = (self._active[at] for at in order)
        rejected = (r for at, r in self._rejected.items() if at not in self._active)
        return Turnout(tuple(came), tuple(islice(rejected, _TOLD)))

    def _spreads(self, active: Active) -> bool:
        recursive = self._lore.books[active.book].recursive
        return recursive and not active.entry.prevent_recursion

    def _step(self, candidates: Iterable[int], step: int) -> list[Active]:
        found: dict[int, Active] = {}
        for at in sorted(candidates):
            if at in self._active or at in self._settled or at in self._lore.fixed:
                continue
            active = self._consider(at, step)
            if active is not None and len(self._active) + len(found) >= MOST:
                self._reject(at, active.key, f"more than {MOST} entries came at once")
            elif active is not None:
                found[at] = active
        for at in self._beaten(found):
            del found[at]
            self._settled.add(at)
        self._active |= found
        return [*found.values()]

    def _consider(self, at: int, step: int) -> Active | None:
        """The entry, if its own conditions are met at this step."""
        book, entry = self._lore.entries[at]
        if entry.forced:
            return Active(entry, book, Cause.FORCED, step=step)
        if entry.barred:
            return None
        past = self._watch._past.get(at)
        if past is not None and entry.once:
            self._reject(at, "", "it came in before, and only once")
            return None
        if past is not None and entry.keep:
            return Active(entry, book, Cause.KEPT, step=step)
        if past is not None and self._now < past.sticky_end:
            return Active(entry, book, Cause.STICKY, step=step)
        if step < entry.delay_recursion or (step > 0 and entry.exclude_recursion):
            return None
        matched = self._match(at)
        if matched is None:
            return None
        cause, key, source = matched
        why = self._refusal(at, entry, past)
        if why:
            self._reject(at, key, why)
            return None
        if entry.probability < 100 and self._draw("chance", entry.id) * 100 >= entry.probability:
            self._settled.add(at)
            self._reject(at, key, f"not drawn at {entry.probability:g} %")
            return None
        return Active(entry, book, cause, key, source, step)

    def _reject(self, at: int, key: str, why: str) -> None:
        book, entry = self._lore.entries[at]
        self._rejected[at] = Rejected(entry, book, key, why)

    def _match(self, at: int) -> tuple[Cause, str, int | str | None] | None:
        """What brings the entry in, by keys or as a constant."""
        entry, keys = self._lore.entries[at][1], self._lore.keys[at]
        if entry.constant:
            return Cause.CONSTANT, "", None
        for key in keys.primary:
            if self._has(at, key):
                cause, source = self._where(at, key)
                return cause, self._lore.text_of(key), source
        return None

    def _refusal(self, at: int, entry: LoreEntry, past: _Past | None) -> str:
        """Why an entry that matched stays out; empty: it does not."""
        watch, keys = self._watch, self._lore.keys[at]
        if self._now < entry.delay:
            return f"the chat has {self._now} messages and it waits for {entry.delay}"
        if past is not None and self._now < past.cooldown_end:
            return f"it cools down until message {past.cooldown_end}"
        if watch._replies < entry.after_replies:
            return f"{watch._replies} replies, and it waits for {entry.after_replies}"
        if watch._replies % entry.every_replies:
            return f"{watch._replies} replies are no multiple of {entry.every_replies}"
        if entry.greeting is not None and watch._greeting != entry.greeting:
            return f"the chat did not begin with greeting {entry.greeting}"
        if keys.secondary and not entry.constant and not self._gate(at, keys, entry.logic):
            return f"its secondary keys do not meet {entry.logic}"
        if entry.additional_keys and not any(self._has(at, key) for key in keys.additional):
            return "none of its additional keys is there"
        excluded = next((key for key in keys.excluded if self._has(at, key)), None)
        if excluded is not None:
            return f"{self._lore.text_of(excluded)!r} excludes it"
        return ""

    def _gate(self, at: int, keys: EntryKeys, logic: KeyLogic) -> bool:
        there = [self._has(at, key) for key in keys.secondary]
        return {
            KeyLogic.AND_ANY: any(there),
            KeyLogic.AND_ALL: all(there),
            KeyLogic.NOT_ANY: not any(there),
            KeyLogic.NOT_ALL: not all(there),
        }[logic]

    def _has(self, at: int, key: int) -> bool:
        last = self._watch._last.get(key)
        if last is not None and self._now - last <= self._lore.depth(at):
            return True
        entry = self._lore.entries[at][1]
        if key in self._recalled and not entry.exclude_recursion:
            return True
        return any(key in self._watch._fields.get(name, ()) for name in entry.sources)

    def _where(self, at: int, key: int) -> tuple[Cause, int | str | None]:
        last = self._watch._last.get(key)
        if last is not None and self._now - last <= self._lore.depth(at):
            return Cause.KEY, last
        entry = self._lore.entries[at][1]
        if key in self._recalled and not entry.exclude_recursion:
            return Cause.RECURSION, self._recalled[key]
        fields = self._watch._fields
        return Cause.SOURCE, next(f for f in entry.sources if key in fields.get(f, ()))

    def _beaten(self, found: dict[int, Active]) -> set[int]:
        """Those of one group that do not come in: a group sends one."""
        groups: dict[str, list[int]] = defaultdict(list)
        for at, active in found.items():
            for group in _groups(active):
                groups[group].append(at)
        taken = {group: a.entry for a in self._active.values() for group in _groups(a)}
        beaten: set[int] = set()
        for group, members in groups.items():
            left = sorted(at for at in members if at not in beaten)
            if not left:
                continue
            winner = taken.get(group) or self._winner(group, left, found)
            for at in left:
                if found[at].entry is not winner:
                    beaten.add(at)
                    why = f"{winner.name or winner.id} stands for the group {group!r}"
                    self._reject(at, found[at].key, why)
        return beaten

    def _winner(self, group: str, members: list[int], found: dict[int, Active]) -> LoreEntry:
        entries = {at: found[at].entry for at in members}
        lasting = [at for at in members if found[at].cause in (Cause.STICKY, Cause.KEPT)]
        if lasting:
            return entries[lasting[0]]
        overriding = [at for at in members if entries[at].group_override]
        if overriding:
            return entries[max(overriding, key=lambda at: entries[at].order)]
        if any(entry.group_scoring for entry in entries.values()):
            scores = {at: self._score(at) for at in members}
            members = [at for at in members if scores[at] == max(scores.values())]
        weights = [max(entries[at].group_weight, 0) for at in members]
        drawn = self._draw("group", group) * sum(weights)
        for at, weight in zip(members, weights, strict=True):
            drawn -= weight
            if drawn < 0:
                return entries[at]
        return entries[members[-1]]

    def _score(self, at: int) -> int:
        """How many of its keys match."""
        keys = self._lore.keys[at]
        return sum(self._has(at, key) for key in (*keys.primary, *keys.secondary))

    def _draw(self, what: str, name: str) -> float:
        """A number in [0, 1) that depends on the chat, its length and what is drawn for."""
        source = f"{self._watch._seed}\0{what}\0{name}\0{self._now}"
        drawn = hashlib.sha256(source.encode(errors="surrogatepass")).digest()
        return int.from_bytes(drawn[:6], "big") / 2**48

    def _remember(self, at: int) -> None:
        entry, past = self._lore.entries[at][1], self._watch._past.setdefault(at, _Past())
        if self._now >= max(past.sticky_end, past.cooldown_end):
            past.sticky_end = self._now + entry.sticky
            past.cooldown_end = past.sticky_end + entry.cooldown


def _groups(active: Active) -> tuple[str, ...]:
    """The groups that an entry stands for; what comes in in any case needs none."""
    return () if active.cause is Cause.FORCED else active.entry.groups
