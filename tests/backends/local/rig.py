"""An engine stepped by hand, the stores it is tried with, and the plain loop it must equal."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from backends.api import Finished, Message, Role, SampledTokens, Sampling, TextDelta
from backends.errors import BackendError
from backends.local.engine import Engine
from backends.local.model import Chunk
from backends.local.prefix import Prefixes
from backends.local.scheduler import Limits
from backends.local.testing import arena, sequence
from backends.testing import turn as small_turn
from kvstore.api import BlockKey, Loaded, Match, Space, Ticket
from kvstore.null import NullStore

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backends.api import Turn, TurnEvent
    from backends.local.checkpoint import LoadedModel
    from backends.local.template import Prompt
    from kvstore.api import Block, Chain, Layout, PrefixStore, Room
    from kvstore.device import DeviceTier

Heard = list["TurnEvent | BackendError"]


def space_of(tenant: str) -> Space:
    return Space("m", "w", "t", "l", "float32", tenant.encode())


class DictStore(NullStore):
    """A store that finds the longest prefix by trying each; a restore takes `delay` polls."""

    def __init__(self, layout: Layout, delay: int = 0) -> None:
        super().__init__()
        self.layout = layout
        self.delay = delay
        self.blocks: dict[BlockKey, Block] = {}
        self.loads: list[tuple[int, Ticket, Match]] = []
        self.closed = False
        self.tickets = 0

    def _needed(self, chain: Chain, length: int) -> list[BlockKey]:
        size = self.layout.block_tokens
        return [
            BlockKey(chain.key(min(start + size, length)), start, group.id)
            for group in self.layout.groups
            for start in range(self.layout.first_needed(group, length), length, size)
        ]

    def match(self, chain: Chain) -> Match:
        for length in range(len(chain.tokens), 0, -1):
            keys = self._needed(chain, length)
            if all(key in self.blocks for key in keys):
                return Match(length, tuple(keys), (("host", length),))
        return Match(0, miss="cold")

    def load(
        self, match: Match, chain: Chain, room: Room, boundaries: Sequence[int] = ()
    ) -> Ticket:
        self.tickets += 1
        buffers = room.take(match.blocks)
        assert buffers is not None
        for key, buffer in zip(match.blocks, buffers, strict=True):
            if len(buffer) != len(self.blocks[key].payload):
                match = Match(0, miss="damaged")
                break
            buffer[:] = self.blocks[key].payload
        self.loads.append((self.delay, Ticket(self.tickets), match))
        return Ticket(self.tickets)

    def poll(self) -> list[Loaded]:
        done = [(t, m) for wait, t, m in self.loads if wait == 0]
        self.loads = [(wait - 1, t, m) for wait, t, m in self.loads if wait > 0]
        return [Loaded(t, m, elapsed_ms=0.0) for t, m in done]

    def missing(self, chain: Chain, length: int) -> list[BlockKey]:
        return [key for key in self._needed(chain, length) if key not in self.blocks]

    def offer(self, blocks: Sequence[Block]) -> int:
        for block in blocks:
            self.blocks[block.key] = replace(block, payload=bytes(block.payload))
        return len(blocks)

    def close(self) -> None:
        self.closed = True


class Rig:
    """An engine stepped by hand, and what each of its turns said."""

    def __init__(
        self,
        model: LoadedModel,
        *,
        limits: Limits | None = None,
        context: int = 1024,
        store: PrefixStore | None = None,
        device: DeviceTier | None = None,
        draft_tokens: int = 6,
    ) -> None:
        kv_dtype = model.decoder.kv_dtype
        self.kept = DictStore(model.config.kv_layout(kv_dtype))
        self.device = device or arena(model.config, 8 * context, kv_dtype=kv_dtype)
        self.prefixes = Prefixes(store or self.kept, self.device, space_of)
        self.engine = Engine(
            model.decoder,
            model.tokenizer,
            model.template,
            self.prefixes,
            self.device,
            limits=limits or Limits(),
            context=context,
            draft_tokens=draft_tokens,
        )

    def submit(self, turn: Turn) -> tuple[int, Heard]:
        heard: Heard = []
        return self.engine.submit(turn, heard.append), heard

    def drain(self, limit: int = 5000) -> None:
        for _ in range(limit):
            if not self.engine.step():
                time.sleep(0.0002)  # a restore is on its way in the store's thread
            if not self.held():
                return
        raise AssertionError("the engine does not come to rest")

    def held(self) -> int:
        stats = self.engine.stats()
        assert len(vars(self.engine)["_turns"]) == stats.queued + stats.running
        return stats.queued + stats.running

    def speak(self, *turns: Turn) -> list[Heard]:
        heard = [self.submit(turn)[1] for turn in turns]
        self.drain()
        return heard


def text_of(heard: Heard) -> str:
    return "".join(event.text for event in heard if isinstance(event, TextDelta))


def finished(heard: Heard) -> Finished:
    last = heard[-1]
    assert isinstance(last, Finished), last
    return last


def error_of(heard: Heard) -> BackendError:
    (error,) = heard
    assert isinstance(error, BackendError)
    return error


def greedy(text: str = "Who are you?", *, max_tokens: int = 24, id: str = "t") -> Turn:
    return small_turn(text, id=id, sampling=Sampling(temperature=0.0, max_tokens=max_tokens))


def naive(model: LoadedModel, turn: Turn) -> list[int]:
    """Greedy ids by one loop over the decoder: no engine."""
    prompt: Prompt = model.template.render(turn)
    kv = sequence(model.config, kv_dtype=model.decoder.kv_dtype)
    tokens = torch.tensor(prompt.ids)
    ids: list[int] = []
    while len(ids) < turn.sampling.max_tokens:
        row = model.decoder.forward([Chunk(kv, tokens)])[0].clone()
        if not ids:
            row[list(prompt.not_first_ids)] = -torch.inf
        ids.append(int(row.argmax()))
        if ids[-1] in prompt.end_ids:
            break
        tokens = torch.tensor([ids[-1]])
    return ids


def next_turn(turn: Turn, heard: Heard, text: str, *, exact: bool = True) -> Turn:
    """The turn after a reply: everything said so far, and one more line."""
    sampled = finished(heard).sampled
    said = (
        *turn.messages,
        Message(Role.ASSISTANT, text_of(heard), turn.speaker),
        Message(Role.USER, text, "You"),
    )
    ids: tuple[SampledTokens | None, ...] = (*(turn.sampled or (None,) * len(turn.messages)),)
    return replace(turn, messages=said, sampled=(*ids, sampled, None) if exact else ())
