"""What a backend does about a KV cache that it does not have: nothing, truthfully."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from backends.api import TierCounters, Turn

__all__ = ["Stateless"]


class Stateless:
    """The cache part of `backends.api.Backend` for backends that keep nothing between turns."""

    keeps = False

    async def prefetch(self, turn: Turn) -> None:
        return None

    async def retire(self, tenant: str, conversation: str) -> None:
        return None

    async def forget(self, tenant: str, owner: str | None) -> int:
        return 0

    async def tiers(self) -> tuple[TierCounters, ...]:
        return ()
