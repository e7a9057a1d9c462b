"""A real server in this process on a free port, for every journey."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from gateway.app import Server, serve
from gateway.config import Config, DataConfig, ServerConfig
from gateway.testing import PromptedBackend

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

    from openai import AsyncOpenAI

CARD = {
    "spec": "chara_card_v3",
    "spec_version": "3.0",
    "data": {
        "name": "Tess",
        "description": "{{char}} tests doors. She is patient and dry.",
        "first_mes": "Mind the third step, {{user}}.",
        "tags": ["dry"],
        "creator": "the tests",
        "creator_notes": "Opens and closes.",
        "extensions": {},
    },
}


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """A server of its own data folder, with one card in it."""
    cards = tmp_path / "data" / "personas"
    cards.mkdir(parents=True)
    (cards / "tess.json").write_text(json.dumps(CARD), encoding="utf-8")
    return replace(
        Config(),
        data=DataConfig(folder=tmp_path / "data"),
        server=ServerConfig(port=0, hello_seconds=10.0, grace_seconds=0.2),
    )


@pytest.fixture
def config_folder(config: Config) -> Path:
    """The folder of one's own cards."""
    return config.data.folder / "personas"


@pytest.fixture
async def backend() -> PromptedBackend:
    return PromptedBackend()


@pytest.fixture
async def server(config: Config, backend: PromptedBackend) -> AsyncGenerator[Server, None]:
    started = await serve(config, backend=backend)
    yield started
    async with asyncio.timeout(20):
        await started.stop()


@pytest.fixture
def persona() -> str:
    """The id of the card in the data folder."""
    return "tess"


@pytest.fixture
async def openai_client(server: Server) -> AsyncGenerator[AsyncOpenAI, None]:
    """The official client of the server with the prompted backend."""
    from openai import AsyncOpenAI

    async with AsyncOpenAI(base_url=server.url + "v1", api_key="any", max_retries=0) as client:
        yield client
