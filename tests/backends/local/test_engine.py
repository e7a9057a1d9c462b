"""The engine speaks as a naive loop does, alone and in company, cold and warm, and frees all.

Longer than our other files: one rig drives every law of the loop.
"""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch

from backends.api import Finished, FinishReason, SampledTokens, Sampling
from backends.errors import BackendError, BackendErrorCode
from backends.local.model import Chunk, Decoder
from backends.local.scheduler import Limits
from backends.testing import turn as small_turn
from kvstore.host import HostTier
from kvstore.null import NullStore, NullTier
from kvstore.tiered import TieredStore
from tests.backends.local.rig import (
    DictStore,
    Heard,
    Rig,
    error_of,
    finished,
    greedy,
    naive,
    next_turn,
    text_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from backends.api import Turn, TurnEvent
    from backends.local.checkpoint import LoadedModel
    from backends.local.template import Prompt
    from kvstore.api import PrefixStore


def test_equals_naive_loop(model: LoadedModel) -> None:
    """A greedy reply is the naive loop's, token by token, with true counts."""
    turn = greedy()
    (heard,) = Rig(model).speak(turn)
    expected = naive(model, turn)
    done = finished(heard)
    assert done.sampled == SampledTokens(model.tokenizer.digest, tuple(expected))
    assert text_of(heard) == b"".join(map(model.tokenizer.token_bytes, expected)).decode()
    assert done.reason is FinishReason.LENGTH
    assert done.usage.prompt_tokens == len(model.template.render(turn).ids)
    assert done.usage.completion_tokens == 24
    assert done.usage.miss == "cold"


@pytest.mark.parametrize("step_tokens", [8, 13, 256])
def test_batch_and_chunks(model: LoadedModel, step_tokens: int) -> None:
    """Turns of different length side by side, prefilled in chunks, speak as each would alone."""
    turns = [greedy("word " * n, id=f"t{n}", max_tokens=8 + n) for n in (1, 7, 20, 3, 11)]
    rig = Rig(model, limits=Limits(max_running=3, step_tokens=step_tokens))
    for turn, heard in zip(turns, rig.speak(*turns), strict=True):
        sampled = finished(heard).sampled
        assert sampled is not None
        assert list(sampled.ids) == naive(model, turn)


def test_cancel_at_every_step(model: LoadedModel) -> None:
    """Cancelled after any number of steps, a turn goes silent at once and leaves nothing held."""
    long = greedy("word " * 20, max_tokens=5)
    for steps in range(16):
        layout = model.config.kv_layout()
        store = DictStore(layout, delay=2)
        rig = Rig(model, limits=Limits(step_tokens=32), store=store)
        rig.speak(greedy("word " * 15, max_tokens=1))  # something to restore
        id, heard = rig.submit(long)
        for _ in range(steps):
            rig.engine.step()
        before = list(heard)
        rig.engine.cancel(id)
        rig.engine.step()
        assert rig.held() == 0
        rig.drain()
        assert heard == before
        (again,) = rig.speak(long)
        sampled = finished(again).sampled
        assert sampled is not None
        assert list(sampled.ids) == naive(model, long)


def test_cancel_leaves_the_others(model: LoadedModel) -> None:
    """Cancelling one of two turns changes nothing for the other; unknown ids are fine."""
    rig = Rig(model)
    first, heard_first = rig.submit(greedy("one"))
    _, heard_second = rig.submit(greedy("two"))
    for _ in range(5):
        rig.engine.step()
    rig.engine.cancel(first)
    rig.engine.cancel(first)
    rig.engine.cancel(999)
    rig.drain()
    assert not any(isinstance(event, Finished) for event in heard_first)
    sampled = finished(heard_second).sampled
    assert sampled is not None
    assert list(sampled.ids) == naive(model, greedy("two"))


def test_seed_alone_and_in_company(model: LoadedModel) -> None:
    """A seeded reply is the same alone and beside others; another seed gives another."""

    def seeded(seed: int) -> Turn:
        return small_turn(sampling=Sampling(temperature=1.2, seed=seed, max_tokens=20))

    (alone,) = Rig(model).speak(seeded(1))
    together = Rig(model).speak(seeded(2), seeded(1), greedy())
    assert text_of(together[1]) == text_of(alone)
    assert text_of(together[0]) != text_of(alone)


def test_stop_string(model: LoadedModel) -> None:
    """A stop string ends the reply as complete and is no part of it; its tokens are no part of
    the sampled ids either."""
    whole = text_of(Rig(model).speak(greedy(max_tokens=40))[0])
    stop = next(whole[i : i + 3] for i in range(4, 30) if whole.find(whole[i : i + 3]) == i)
    turn = greedy(max_tokens=40)
    turn = replace(turn, sampling=replace(turn.sampling, stop=(stop,)))
    (heard,) = Rig(model).speak(turn)
    done = finished(heard)
    assert text_of(heard) == whole[: whole.index(stop)]
    assert done.reason is FinishReason.COMPLETE
    assert done.sampled is not None
    assert b"".join(map(model.tokenizer.token_bytes, done.sampled.ids)).decode() == text_of(heard)


def test_end_token(model: LoadedModel) -> None:
    """A reply whose likeliest token is a control token from the start still says something."""
    (end,) = model.tokenizer.eos_ids

    class Ending(Decoder):
        def forward(self, chunks: Sequence[Chunk]) -> torch.Tensor:
            logits = super().forward(chunks).clone()
            logits[:, end] = 1e4
            return logits

    ending = Ending.__new__(Ending)
    ending.__dict__.update(model.decoder.__dict__)
    (heard,) = Rig(replace(model, decoder=ending)).speak(greedy())
    done = finished(heard)
    assert len(text_of(heard)) == 1
    assert done.reason is FinishReason.COMPLETE
    assert done.usage.completion_tokens == 2
    assert done.sampled is not None
    assert len(done.sampled.ids) == 1


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_only_greedy_draws_ask_for_the_largest_logits_alone(
    model: LoadedModel, temperature: float
) -> None:
    """And not for the first token, whose likeliest may be masked."""
    asked: list[bool] = []

    class Watched(Decoder):
        def forward(self, chunks: Sequence[Chunk]) -> torch.Tensor:
            asked.extend(chunk.largest_only for chunk in chunks)
            return super().forward(chunks)

    watched = Watched.__new__(Watched)
    watched.__dict__.update(model.decoder.__dict__)
    turn = greedy(max_tokens=4)
    turn = replace(turn, sampling=replace(turn.sampling, temperature=temperature))
    Rig(replace(model, decoder=watched)).speak(turn)
    assert asked == [False, *[temperature == 0.0] * 3]


@pytest.fixture(params=["instant", "slow", "tiered"])
def store(request: pytest.FixtureRequest, either_model: LoadedModel) -> Iterator[PrefixStore]:
    layout = either_model.config.kv_layout()
    made: PrefixStore = DictStore(layout, delay=3 if request.param == "slow" else 0)
    if request.param == "tiered":
        made = TieredStore(layout, NullTier(), HostTier(1 << 28))
    yield made
    made.close()


def test_warm_equals_cold(either_model: LoadedModel, store: PrefixStore) -> None:
    """Ten turns with a store say what they say without one, and compute only what is new."""
    warm = Rig(either_model, store=store)
    turn = greedy(max_tokens=9)
    known = 0
    for number in range(10):
        (heard,) = warm.speak(turn)
        (cold,) = Rig(either_model, store=NullStore()).speak(turn)
        assert text_of(heard) == text_of(cold)
        done = finished(heard)
        usage = done.usage
        assert usage.cached_tokens == known
        assert usage.cached_by_tier == ((("host", known),) if known else ())
        # Known next time: what the reply kept, but for a last token whose KV was never computed.
        assert done.sampled is not None
        new = min(len(done.sampled.ids), usage.completion_tokens - 1)
        known = usage.prompt_tokens + new
        turn = next_turn(turn, heard, f"line {number}")


def test_regenerate_is_warm(model: LoadedModel) -> None:
    """The same turn again restores the prompt up to its last message."""
    rig = Rig(model)
    rig.speak(greedy())
    (again,) = rig.speak(greedy())
    prompt = model.template.render(greedy())
    usage = finished(again).usage
    assert prompt.boundaries[-1] <= usage.cached_tokens < usage.prompt_tokens


def test_other_tenant_is_cold(model: LoadedModel) -> None:
    """A tenant never gets another tenant's prefix."""
    rig = Rig(model)
    rig.speak(greedy())
    (heard,) = rig.speak(replace(greedy(), tenant="other"))
    assert finished(heard).usage.cached_tokens == 0


def test_cancelled_turn_is_kept(model: LoadedModel) -> None:
    """What a cancelled turn computed serves the next one."""
    rig = Rig(model)
    id, _ = rig.submit(greedy())
    for _ in range(4):
        rig.engine.step()
    rig.engine.cancel(id)
    (heard,) = rig.speak(greedy())
    assert finished(heard).usage.cached_tokens > 0


def test_broken_block_is_a_miss(model: LoadedModel) -> None:
    """Blocks that do not fit are a miss; the reply is right and says why it was slow."""
    rig = Rig(model)
    rig.speak(greedy())
    for key, block in rig.kept.blocks.items():
        rig.kept.blocks[key] = replace(block, payload=bytes(block.payload)[:-4])
    (heard,) = rig.speak(greedy())
    done = finished(heard)
    assert done.usage.cached_tokens == 0
    assert done.usage.miss == "damaged"
    assert done.sampled is not None
    assert list(done.sampled.ids) == naive(model, greedy())


def test_context_overflow(model: LoadedModel) -> None:
    """A prompt that leaves no room for one token is refused with both numbers."""
    prompt_len = len(model.template.render(greedy()).ids)
    for context in (prompt_len - 5, prompt_len):
        (heard,) = Rig(model, context=context).speak(greedy())
        error = error_of(heard)
        assert error.code is BackendErrorCode.CONTEXT_OVERFLOW
        assert error.detail == {"prompt_tokens": prompt_len, "context": context}


def test_context_ends_the_reply(model: LoadedModel) -> None:
    """The context cuts a reply as length."""
    prompt_len = len(model.template.render(greedy()).ids)
    (heard,) = Rig(model, context=prompt_len + 3).speak(greedy())
    done = finished(heard)
    assert (done.reason, done.usage.completion_tokens) == (FinishReason.LENGTH, 3)


def test_overloaded(model: LoadedModel) -> None:
    """A turn past the queue's bound is refused as retryable; the others are served."""
    rig = Rig(model, limits=Limits(max_running=1, max_queued=2))
    heard = [rig.submit(greedy(max_tokens=3))[1] for _ in range(4)]
    rig.drain()
    refused = [h for h in heard if isinstance(h[0], BackendError)]
    assert len(refused) == 2
    assert error_of(refused[0]).code is BackendErrorCode.OVERLOADED
    assert error_of(refused[0]).retryable
    assert sum(isinstance(h[-1], Finished) for h in heard) == 2


def test_waits_no_longer_than_it_may(model: LoadedModel) -> None:
    """A turn that found no room in its time is refused as retryable; who runs goes on."""
    rig = Rig(model, limits=Limits(max_running=1, max_wait=1e-9))
    heard = [rig.submit(greedy(max_tokens=3))[1] for _ in range(2)]
    rig.drain()
    assert isinstance(heard[0][-1], Finished)
    assert error_of(heard[1]).code is BackendErrorCode.OVERLOADED
    assert error_of(heard[1]).retryable


def test_empty_prompt(model: LoadedModel) -> None:
    """A turn that renders to nothing is the caller's fault."""

    class Mute:
        def render(self, turn: Turn) -> Prompt:
            return replace(model.template.render(turn), ids=(), boundaries=())

        def cost(self, text: str) -> int:
            return 0

    (heard,) = Rig(replace(model, template=Mute())).speak(greedy())
    assert error_of(heard).code is BackendErrorCode.BAD_REQUEST


def test_model_failure_ends_its_step_only(model: LoadedModel) -> None:
    """A forward pass that raises fails its turns as INTERNAL; the next turn works."""

    class Flaky(Decoder):
        def forward(self, chunks: Sequence[Chunk]) -> torch.Tensor:
            if self.__dict__.pop("broken", False):
                raise RuntimeError("no memory")
            return super().forward(chunks)

    flaky = Flaky.__new__(Flaky)
    flaky.__dict__.update(model.decoder.__dict__, broken=True)
    rig = Rig(replace(model, decoder=flaky))
    first, second = rig.speak(greedy(), greedy())
    assert error_of(first).code is error_of(second).code is BackendErrorCode.INTERNAL
    (heard,) = rig.speak(greedy())
    assert finished(heard).usage.completion_tokens == 24


def test_bad_logits_fail_alone(model: LoadedModel) -> None:
    """A row of NaN fails its own turn; the turn beside it speaks as ever."""

    class Poisoned(Decoder):
        def forward(self, chunks: Sequence[Chunk]) -> torch.Tensor:
            logits = super().forward(chunks).clone()
            logits[[c.kv.length > 140 for c in chunks]] = torch.nan
            return logits

    poisoned = Poisoned.__new__(Poisoned)
    poisoned.__dict__.update(model.decoder.__dict__)
    rig = Rig(replace(model, decoder=poisoned))
    bad, good = rig.speak(greedy("word " * 30), greedy())
    assert error_of(bad).code is BackendErrorCode.INTERNAL
    sampled = finished(good).sampled
    assert sampled is not None
    assert list(sampled.ids) == naive(model, greedy())


def test_fair_between_tenants(model: LoadedModel) -> None:
    """A tenant's single turn does not wait for all of another's."""
    rig = Rig(model, limits=Limits(max_running=1))
    order: list[str] = []

    def emit_as(name: str) -> None:
        def emit(event: TurnEvent | BackendError) -> None:
            if isinstance(event, Finished):
                order.append(name)

        rig.engine.submit(replace(greedy(max_tokens=2), tenant=name[0]), emit)

    for name in ("a1", "a2", "a3", "b1"):
        emit_as(name)
    rig.drain()
    assert order.index("b1") == 1


def test_run_and_stop(model: LoadedModel) -> None:
    """run serves from its own thread; stop fails what is left as UNAVAILABLE, closes the store."""
    rig = Rig(model)
    thread = threading.Thread(target=rig.engine.run)
    thread.start()
    ended = threading.Event()
    events: Heard = []

    def emit(event: TurnEvent | BackendError) -> None:
        events.append(event)
        if isinstance(event, Finished):
            ended.set()

    rig.engine.submit(greedy(), emit)
    assert ended.wait(20)
    began = threading.Event()
    left: Heard = []

    def note(event: TurnEvent | BackendError) -> None:
        left.append(event)
        began.set()

    rig.engine.submit(greedy(max_tokens=900), note)
    assert began.wait(20)
    rig.engine.stop()
    thread.join(20)
    assert not thread.is_alive()
    last = left[-1]
    assert isinstance(last, BackendError)
    assert last.code is BackendErrorCode.UNAVAILABLE
    assert rig.kept.closed
    assert rig.held() == 0


def test_an_order_to_stop_is_never_missed(model: LoadedModel) -> None:
    """A stop that is taken up while there is nothing to compute ends the loop as well."""
    rig = Rig(model)
    rig.engine.stop()
    thread = threading.Thread(target=rig.engine.run, daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive()


def test_timings(model: LoadedModel) -> None:
    """Timings are those of a turn: parts add up to the time to the first token."""
    (heard,) = Rig(model).speak(greedy())
    t = finished(heard).timings
    assert 0 < t.prefill_ms <= t.ttft_ms
    assert t.queue_ms + t.restore_ms + t.prefill_ms == pytest.approx(t.ttft_ms)
    assert t.decode_ms > 0
