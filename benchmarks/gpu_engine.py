"""The same conversations through the whole engine: scheduler, prefix cache, sampling, text.

Only the model and its tokenizer are made up: random weights, a vocabulary of numbered words. Each
conversation's prompt is drawn token by token, so that its length is exact. With a cached share the
engine first answers the beginning of every prompt with one token, as an earlier turn would have,
and keeps its KV by itself; what it then reports as cached is what counts.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import tokenizers
from tokenizers.models import WordLevel

from backends.api import Finished, Message, Role, Sampling, TextDelta, Turn
from backends.errors import BackendError
from backends.local.engine import Engine
from backends.local.model import Decoder
from backends.local.paged import pages_needed
from backends.local.prefix import Prefixes
from backends.local.scheduler import Limits
from backends.local.synthetic import int8_model, synthetic_config
from backends.local.template import Prompt
from backends.local.tokenizer import Tokenizer
from benchmarks.gpu_int8 import int8_steps
from benchmarks.gpu_serve import Served, summary
from kvstore.api import Space
from kvstore.device import DeviceTier
from kvstore.host import HostTier
from kvstore.policy import Policy
from kvstore.tiered import TieredStore

if TYPE_CHECKING:
    from backends.api import TurnEvent
    from benchmarks.gpu_serve import Shape

__all__ = ["Heard", "answered", "ask", "drawn_engine", "serve_engine"]

HOST_BYTES = 16 << 30


class _Drawn:
    """A template that ignores texts: a turn's prompt is its conversation's first so many ids.

    The message's text says how many.
    """

    def __init__(self, vocabulary: int) -> None:
        self._vocabulary = vocabulary

    def render(self, turn: Turn) -> Prompt:
        generator = np.random.default_rng(int(turn.conversation))
        count = int(turn.messages[-1].text)
        ids = generator.integers(0, self._vocabulary, count).tolist()
        return Prompt(tuple(ids), (count,), (), frozenset(), frozenset())

    def cost(self, text: str) -> int:
        return int(text)


@dataclass(slots=True)
class Heard:
    """What came of one turn."""

    first: float = 0.0
    done: Finished | None = None
    error: BackendError | None = None

    def __call__(self, event: TurnEvent | BackendError) -> None:
        if isinstance(event, BackendError):
            self.error = event
        elif isinstance(event, TextDelta):
            self.first = self.first or time.perf_counter()
        elif isinstance(event, Finished):
            self.done = event


def serve_engine(shape: Shape, name: str, device: str) -> dict[str, float]:
    """The engine's figures for `shape`, and the share of prompt tokens it had cached.

    The last of three runs counts, each with conversations of its own: on a GPU the first compiles
    and the second captures. Raises `RuntimeError` when a turn failed.
    """
    config = synthetic_config(name)
    decoder = Decoder(config, int8_steps(int8_model(config, 1, device), device))
    engine, _ = drawn_engine(decoder, shape)
    try:
        for attempt in range(1 if device == "cpu" else 3):
            conversations = range(
                attempt * shape.conversations, (attempt + 1) * shape.conversations
            )
            if shape.cached:
                _round(engine, conversations, shape.cached, 1)
            served, cached = _round(engine, conversations, shape.prompt, shape.reply)
    finally:
        engine.stop()
        engine.run()  # closes the store
    share = cached / (shape.conversations * shape.prompt)
    return {**summary(shape, served), "cached_token_share": share}


def drawn_engine(decoder: Decoder, shape: Shape) -> tuple[Engine, DeviceTier]:
    """An engine around the decoder for prompts that are drawn, and the pages it writes.

    Two rounds of `shape` fit on the device, and what they keep into host memory.
    """
    config, device = decoder.config, decoder.device
    layout = config.kv_layout("int8")
    length = shape.prompt + shape.reply
    slots = {
        # What earlier rounds left stays while the next one runs.
        group.id: 4
        * shape.conversations
        * (pages_needed(group, length, shape.step_tokens, layout.block_tokens) + 2)
        for group in layout.groups
    }
    pool = DeviceTier(layout, slots, device=device)
    decoder.prepare(pool, shape.conversations, shape.step_tokens, length)
    policy = Policy()
    store = TieredStore(layout, pool, HostTier(HOST_BYTES), policy=policy)
    words = {f"w{at} ": at for at in range(config.vocab_size)}
    backend = tokenizers.Tokenizer(WordLevel(words, unk_token="w0 "))
    engine = Engine(
        decoder,
        Tokenizer(backend, digest="numbered words"),
        _Drawn(config.vocab_size),
        Prefixes(store, pool, _space, policy),
        pool,
        limits=Limits(
            max_running=shape.conversations,
            max_queued=shape.conversations,
            step_tokens=shape.step_tokens,
            max_wait=3600.0,
        ),
        context=length,
    )
    return engine, pool


def _space(tenant: str) -> Space:
    return Space("synthetic", "random", "words", "pages", "int8", tenant.encode())


def ask(engine: Engine, conversations: range, prompt: int, reply: int) -> list[Heard]:
    """One turn of each conversation, all asked for at once; they are heard as the engine steps."""
    heard = [Heard() for _ in conversations]
    for conversation, emit in zip(conversations, heard, strict=True):
        turn = Turn(
            id=f"t{conversation}",
            messages=(Message(Role.USER, str(prompt)),),
            speaker="Guide",
            sampling=Sampling(temperature=0.0, max_tokens=reply),
            conversation=str(conversation),
        )
        engine.submit(turn, emit)
    return heard


def answered(engine: Engine, heard: list[Heard]) -> list[Finished]:
    """Steps until every turn has ended; raises `RuntimeError` when one failed."""
    while any(h.done is None and h.error is None for h in heard):
        engine.step()
    failed = next((h.error for h in heard if h.error is not None), None)
    if failed is not None:
        raise RuntimeError(f"a turn failed: {failed}")
    return [h.done for h in heard if h.done is not None]


def _round(engine: Engine, conversations: range, prompt: int, reply: int) -> tuple[Served, int]:
    """One turn of each conversation; and how many tokens were cached."""
    begin = time.perf_counter()
    heard = ask(engine, conversations, prompt, reply)
    done = answered(engine, heard)
    seconds = time.perf_counter() - begin
    if any(d.usage.completion_tokens != reply for d in done):
        raise RuntimeError(f"a reply has not {reply} tokens")
    cached = sum(d.usage.cached_tokens for d in done)
    return Served([h.first - begin for h in heard], seconds), cached
