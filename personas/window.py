"""What of a chat's history is in a prompt, and the lore between its messages.

The chat is replayed from its start, so that every later prompt finds the same: lore that came in at
a turn is planted just before the message that was new then (after it, where the author wants it at
depth 0), and stays there as if it had been said. When the total passes the room, the examples go
first, then the oldest messages, until the history is well below what it may take, for many turns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from backends.api import Message, Role
from personas.lorebook import closes
from personas.lorebook_watch import Watch
from personas.persona import Place

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from backends.api import SampledTokens
    from personas.conversation import ChatMessage
    from personas.lorebook import Active, Turnout
    from personas.persona import LoreEntry
    from personas.script import Script

__all__ = ["LORE_SHARE", "Arrivals", "Cut", "Item", "Plant", "Window", "arrivals", "fit"]

LORE_SHARE = 0.25
"""What a book without a budget of its own may take of the room."""

# After a trim, history takes this share of the room it has.
_LOW_WATER = 0.4
# When the examples go and the history takes more than this share, it is trimmed with them.
_HIGH_WATER = 0.75
# A text that is wanted at a depth is planted again when it is so many messages deeper than that.
_DRIFT = 12


class Plant(NamedTuple):
    """An entry between the messages: just before message `at` of the history, or just after it."""

    active: Active
    at: int
    before: bool


class Item(NamedTuple):
    """One message of a window: said, or planted."""

    message: Message
    cost: int
    sampled: SampledTokens | None = None
    plant: Plant | None = None


class Cut(NamedTuple):
    """An entry that came in and has no place, and why."""

    active: Active
    why: str


@dataclass(slots=True)
class Arrivals:
    """Who comes in where a reply was spoken or is to be: message -> turnout, in order."""

    turnouts: dict[int, Turnout]
    texts: dict[str, str]
    """The text of each entry that comes in, by the entry's id."""


class _Followed(NamedTuple):
    """A chat as far as its lore was followed; it goes on where the same history goes on."""

    history: Sequence[ChatMessage]
    user: tuple[str, str]
    watch: Watch
    turnouts: dict[int, Turnout]
    texts: dict[str, str]


def arrivals(
    script: Script, history: Sequence[ChatMessage], seed: str, greeting: int | None
) -> Arrivals:
    """Leads the persona's lore through the chat. Independent of tokens.

    What was followed of a chat is remembered with the lore, so that a turn costs a turn's work.
    """
    lore, voice = script.lore, script.voice
    notes = {note.entry.id: voice(note.entry.content) for note in script.notes}
    if not lore.entries:
        return Arrivals({}, notes)
    about = script.about[0].text if script.about else ""
    user = (voice.user, about)
    known = lore.followed.pop(seed, None)
    if (
        isinstance(known, _Followed)
        and known.user == user
        and known.history == history[: len(known.history)]
    ):
        followed = known
    else:
        watch = _watch(script, seed, greeting, about)
        followed = _Followed((), user, watch, {}, {})
    watch, turnouts, texts = followed.watch, followed.turnouts, followed.texts
    for at in range(len(followed.history), len(history)):
        watch.hear(history[at].text, reply=history[at].role is Role.ASSISTANT)
        if _replied_to(history, at):
            turnouts[at] = turnout = watch.turn()
            for active in turnout.active:
                if active.entry.id not in texts:
                    texts[active.entry.id] = voice(active.entry.content)
    # After any other message it depends on the next one whether a reply was asked for there.
    if history and history[-1].role is Role.USER:
        lore.remember(seed, followed._replace(history=history))
    return Arrivals(turnouts, texts | notes)


def _watch(script: Script, seed: str, greeting: int | None, about: str) -> Watch:
    voice, persona = script.voice, script.voice.persona
    recalled: dict[str, str] = {}

    def recall(entry: LoreEntry) -> str:
        if entry.id not in recalled:
            recalled[entry.id] = voice(entry.content, scan=True)
        return recalled[entry.id]

    fields = {
        "user": about,
        "description": persona.description,
        "personality": persona.personality,
        "scenario": persona.scenario,
        "depth_prompt": persona.depth_prompt.text if persona.depth_prompt else "",
        "creator_notes": persona.creator_notes,
    }
    return Watch(script.lore, seed=seed, greeting=greeting, fields=fields, recall=recall)


def _replied_to(history: Sequence[ChatMessage], at: int) -> bool:
    """Whether a reply follows this message, or was asked for after it."""
    said, last = history[at], at == len(history) - 1
    return said.role is Role.USER or last or history[at + 1].role is Role.ASSISTANT


def fit(
    found: Sequence[Active],
    costs: Mapping[str, int],
    limits: Sequence[int],
    spent: Sequence[int],
    *,
    full: bool,
) -> tuple[list[Active], list[Cut]]:
    """Those that the budgets of their books have tokens for, and those that are cut.

    `costs` by the entry's id; `limits` and `spent` by book. Higher priority goes first, then what
    the chat brought in before what other entries did, then the higher order; an entry that does not
    fit makes way for a smaller one. `full`: the context is, and entries that then yield are cut.
    """
    left = [limit - used for limit, used in zip(limits, spent, strict=True)]
    wanted = [0] * len(left)
    for active in found:
        wanted[active.book] += costs[active.entry.id]
    if not full and all(want <= there for want, there in zip(wanted, left, strict=True)):
        return [*found], []
    ranked = sorted(
        enumerate(found),
        key=lambda ranked: (
            -ranked[1].entry.priority,
            ranked[1].step,
            -ranked[1].entry.order,
            ranked[0],
        ),
    )
    kept: set[int] = set()
    cuts: list[Cut] = []
    for at, active in ranked:
        entry, cost = active.entry, costs[active.entry.id]
        if full and entry.spare_on_limit:
            cuts.append(Cut(active, "the context is full"))
        elif entry.ignore_budget:
            kept.add(at)
        elif cost > left[active.book]:
            why = f"{cost} tokens, and {left[active.book]} of {limits[active.book]} are left"
            cuts.append(Cut(active, why))
        else:
            left[active.book] -= cost
            kept.add(at)
    return [active for at, active in enumerate(found) if at in kept], cuts


class Window:
    """The history's part of one prompt: `items` in order, their total `cost`.

    `first` is the first message of the history that is in. `active` and `cuts` are those of the
    last turn, `planted` has where entries stand, by id. `moved` says that the window's start moved
    since the turn before; `examples` whether there is room for them, `dropped` that there was until
    this turn.
    """

    def __init__(
        self,
        script: Script,
        came: Arrivals,
        costs: Mapping[str, int],
        *,
        room: int,
        limits: Sequence[int],
        spent: Sequence[int],
    ) -> None:
        """`costs` by text; `room` for history and examples; `limits` and `spent` by book."""
        self.items: list[Item] = []
        self.cost = 0
        self.first = 0
        self.planted: dict[str, int] = {}
        self.active: list[Active] = []
        self.cuts: list[Cut] = []
        self.examples = True
        self.moved = self.dropped = False
        self._script = script
        self._came = came
        self._costs = costs
        self._prices = {entry: costs[text] for entry, text in came.texts.items() if text}
        self._notes = [note for note in script.notes if not closes(note.entry)]
        self._room = room
        self._limits = limits
        self._spent = spent
        self._examples_cost = sum(costs[message.text] for message in script.examples)
        self._turned = False
        self.trim(0)

    def replay(self, history: Sequence[ChatMessage]) -> None:
        """Takes in the whole history. The last message stays in whatever it costs."""
        for at, said in enumerate(history):
            if self._turned:
                self.moved = self.dropped = False
            item = Item(_message(said), self._costs[said.text], said.sampled)
            self._add([item])
            self._turned = _replied_to(history, at)
            if self._turned:
                self._plant(at, item)

    def trim(self, keep: int, less: int = 0) -> None:
        """Makes room but for the last `keep` items; `less`: so much of the room is not there."""
        room = self._room - less
        full: float = room
        if self.examples and self.cost + self._examples_cost > room:
            self.examples = False
            self.dropped = True
            # What follows the examples is to be read again; once for both, not soon once more.
            full = _HIGH_WATER * room
        if self.cost <= full:
            return
        gone = 0
        while gone < len(self.items) - keep and self.cost > _LOW_WATER * room:
            item = self.items[gone]
            self.cost -= item.cost
            if item.plant is None:
                self.first += 1
            elif self.planted[item.plant.active.entry.id] == item.plant.at:
                del self.planted[item.plant.active.entry.id]
            gone += 1
        if gone:
            del self.items[:gone]
            self.moved = True

    def _add(self, items: Sequence[Item]) -> None:
        self.items += items
        self.cost += sum(item.cost for item in items)
        self.trim(len(items))

    def _plant(self, at: int, said: Item) -> None:
        """Puts in what comes in with message `at`, the last item, and is not there already."""
        turnout = self._came.turnouts.get(at)
        found = [a for a in (turnout.active if turnout else ()) if a.entry.id in self._prices]
        full = self.first > 0 or not self.examples
        self.active, self.cuts = fit(found, self._prices, self._limits, self._spent, full=full)
        self.active += [note for note in self._notes if note.entry.id in self._prices]
        before: list[Item] = []
        after: list[Item] = []
        left = self._room - said.cost
        for active in [one for one in self.active if not self._stands(one, at)]:
            entry, cost = active.entry, self._prices[active.entry.id]
            if cost > left:
                why = f"{cost} tokens, and the context has {max(left, 0)} left"
                self.cuts.append(Cut(active, why))
                self.active.remove(active)
                continue
            left -= cost
            # What an engine has read stays in front: a reply that is to follow a reply comes last.
            ahead = said.message.role is not Role.ASSISTANT and not closes(entry)
            message = self._script.message(entry.role, self._came.texts[entry.id])
            planted = Item(message, cost, None, Plant(active, at, ahead))
            (before if ahead else after).append(planted)
            self.planted[entry.id] = at
        if before or after:
            self.items.pop()
            self.cost -= said.cost
            self._add([*before, said, *after])
        for active in [one for one in self.active if one.entry.id not in self.planted]:
            self.active.remove(active)
            self.cuts.append(Cut(active, "it was trimmed with the oldest messages"))

    def _stands(self, active: Active, at: int) -> bool:
        """Whether the entry is in the window, near enough to message `at` if it has a depth."""
        entry = active.entry
        there = self.planted.get(entry.id)
        if there is None:
            return False
        return entry.place is not Place.DEPTH or at - there <= entry.depth + _DRIFT


def _message(said: ChatMessage) -> Message:
    return Message(said.role, said.text, said.name)
