"""gateway.metrics: what /metrics says after a conversation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiohttp import ClientSession
from prometheus_client.parser import text_string_to_metric_families

from backends.api import TierCounters
from backends.scripted import Script, ScriptedBackend
from gateway.app import serve
from gateway.config import Config, DataConfig, ServerConfig
from gateway.protocol import ChatOpen, ChatSnapshot, TurnDone
from gateway.testing import connected

if TYPE_CHECKING:
    from pathlib import Path


class Tiered(ScriptedBackend):
    """Has one tier."""

    async def tiers(self) -> tuple[TierCounters, ...]:
        return (TierCounters("disk", blocks=3, bytes=4096, hits=7, damaged=1),)


async def test_counts_turns_and_tiers(tmp_path: Path) -> None:
    """A turn and the backend's tiers are there, in a form that Prometheus reads."""
    config = Config(server=ServerConfig(port=0), data=DataConfig(folder=tmp_path))
    server = await serve(config, backend=Tiered(Script(delay=0)))
    async with connected(server.url) as alice:
        await alice.send(ChatOpen(id="a", persona="maren"))
        chat = (await alice.until(ChatSnapshot)).chat
        await alice.say(chat, "Hello")
        done = await alice.until(TurnDone)
    stats = done.message.stats
    assert stats is not None
    async with ClientSession() as client, client.get(server.url + "metrics") as answer:
        assert answer.status == 200
        text = await answer.text()
    found = {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    of = (("backend", "scripted"),)
    assert found["greenroom_turns_total", (*of, ("status", "complete"))] == 1
    assert found["greenroom_prompt_tokens_total", of] == stats.prompt_tokens
    assert found["greenroom_ttft_seconds_count", of] == 1
    disk = (*of, ("tier", "disk"))
    assert found["greenroom_kv_hits_total", disk] == 7
    assert found["greenroom_kv_damaged_total", disk] == 1
    assert found["greenroom_kv_bytes", disk] == 4096
    assert "Hello" not in text
    await server.stop()
