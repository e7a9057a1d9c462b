"""The local backend keeps the backend contract, over its real engine process."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from backends.local.client import LocalBackend
from backends.local.settings import EngineSettings
from backends.testing import BackendContract

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from backends.api import Backend


class TestContract(BackendContract):
    @pytest.fixture
    async def backend(self, tiny_folder: Path, tmp_path: Path) -> AsyncIterator[Backend]:
        made = LocalBackend(EngineSettings(tmp_path, model=str(tiny_folder), threads=1))
        yield made
        await made.aclose()
