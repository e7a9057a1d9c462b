"""Warm equals cold, bit for bit: tokens and logits, from every tier, alone and in company.

On the real weights, through the real engine and store.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch

from backends.api import Message, Role, Sampling
from backends.local.checkpoint import load
from backends.local.model import Decoder
from backends.local.scheduler import Limits
from backends.local.testing import arena
from backends.testing import turn as small_turn
from kvstore.disk import DiskTier
from kvstore.host import HostTier
from kvstore.null import NullStore
from kvstore.remote import RemoteTier
from kvstore.testing import settle
from kvstore.tiered import TieredStore
from tests.backends.local.rig import Heard, Rig, finished

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from backends.api import Turn
    from backends.local.checkpoint import LoadedModel
    from backends.local.kernels.cpu import CpuKernels
    from backends.local.model import Chunk
    from tests.redis_server import RedisServer

STORY = (
    "The lamp had gone out twice that night, and twice she had climbed the hundred and nine steps "
    "with the can of oil against her hip, counting them, because counting kept the wind outside. "
)
REPLY = 12


class Recorded(Decoder):
    """Keeps the newest logits of every position by sequence; a wrong draft's are written over."""

    rows: dict[int, dict[int, torch.Tensor]]

    def forward(self, chunks: Sequence[Chunk]) -> torch.Tensor:
        chunks = [chunk._replace(largest_only=False) for chunk in chunks]
        ends = [chunk.kv.length + len(chunk.tokens) for chunk in chunks]
        logits = super().forward(chunks)
        rows = iter(logits)
        for chunk, end in zip(chunks, ends, strict=True):
            for position in range(end - chunk.wanted, end):
                self.rows.setdefault(id(chunk.kv), {})[position] = next(rows).clone()
        assert next(rows, None) is None
        return logits


@pytest.fixture(scope="module", params=["packaged_gemma", "packaged_smollm2"])
def real(request: pytest.FixtureRequest, kernels: CpuKernels) -> LoadedModel:
    folder: Path = request.getfixturevalue(request.param)
    loaded = load(folder, kernels=kernels)
    recorded = Recorded.__new__(Recorded)
    recorded.__dict__.update(loaded.decoder.__dict__, rows={})
    return replace(loaded, decoder=recorded)


def asked(text: str, paragraphs: int, chat: str) -> Turn:
    """A turn whose prompt crosses gemma's window of 512 tokens when `paragraphs` are many."""
    said = (Message(Role.SYSTEM, STORY * paragraphs), Message(Role.USER, text, "You"))
    turn = small_turn(text, sampling=Sampling(temperature=0.0, max_tokens=REPLY))
    return replace(turn, messages=said, stable=1, shared=1, persona="p@1", conversation=chat)


def said(
    rig: Rig, model: LoadedModel, *turns: Turn
) -> tuple[list[int], torch.Tensor, dict[str, int]]:
    """The first turn's ids, the logits they were drawn from, and where its prefix came from."""
    recorded = model.decoder
    assert isinstance(recorded, Recorded)
    recorded.rows = {}
    heard: list[Heard] = [rig.submit(turn)[1] for turn in turns]
    rig.engine.step()
    live = next(iter(vars(rig.engine)["_turns"]))
    name = id(live.kv)
    rig.drain()
    done = finished(heard[0])
    assert done.sampled is not None
    first = done.usage.prompt_tokens - 1
    drawn = range(first, first + done.usage.completion_tokens)
    rows = torch.stack([recorded.rows[name][position] for position in drawn])
    return list(done.sampled.ids), rows, dict(done.usage.cached_by_tier)


def test_warm_equals_cold_bit_for_bit(
    real: LoadedModel, tmp_path: Path, redis_server: RedisServer
) -> None:
    """The same bits recomputed, from device, memory, disk and Redis, alone and in a batch of 8."""
    turn = asked("What did you see from the gallery?", 14, "a")
    others = [asked(f"And on day {n}? " * n, n % 5, f"other-{n}") for n in range(1, 8)]
    cold = Rig(real, store=NullStore(), context=2048)
    ids, logits, source = said(cold, real, turn)
    assert source == {}
    assert len(ids) > 1

    device = arena(real.config, 8 * 2048, kv_dtype=real.decoder.kv_dtype)
    host, far = HostTier(1 << 30), RemoteTier(redis_server.url, deadline=10.0)
    disk = DiskTier(tmp_path, 1 << 30)
    store = TieredStore(device.layout, device, host, (disk, far))
    warm = Rig(real, store=store, device=device, context=2048)
    said(warm, real, turn)
    settle(store)
    near = (device, host, disk)
    for lost, name in enumerate(("device", "host", "disk", "remote")):
        for company in ((), tuple(others)):
            for tier in near[:lost]:
                tier.discard(tier.held())
            again, rows, source = said(warm, real, turn, *company)
            assert name in source
            assert again == ids, (name, len(company))
            assert torch.equal(rows, logits), (name, len(company))
            settle(store)
    again, rows, source = said(cold, real, turn, *others)
    assert (again, source) == (ids, {})
    assert torch.equal(rows, logits)
    store.close()


@pytest.mark.parametrize("step_tokens", [16, 100, 2048])
def test_chunks_change_no_bit(real: LoadedModel, step_tokens: int) -> None:
    """However a prompt is cut into steps, its logits are the same bits."""
    turn = asked("What did you see from the gallery?", 14, "a")
    whole = said(Rig(real, store=NullStore(), context=2048), real, turn)
    limits = Limits(max_running=8, step_tokens=step_tokens)
    cut = said(Rig(real, store=NullStore(), context=2048, limits=limits), real, turn)
    assert cut[0] == whole[0]
    assert torch.equal(cut[1], whole[1])
