"""The backends that people may choose from, by name; the first one is the default."""

from __future__ import annotations

import asyncio
import difflib
from typing import TYPE_CHECKING

from gateway.errors import ErrorCode, Refused, StartError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from gateway.standby import Standby

__all__ = ["Ensemble"]


class Ensemble:
    """Standbys by their backend's name.

    The default one starts at once, the others when first used: one that nobody chooses costs
    nothing. Raises `StartError` when two have one name.
    """

    def __init__(self, standbys: Sequence[Standby]) -> None:
        self._standbys = {standby.backend.name: standby for standby in standbys}
        if len(self._standbys) < len(standbys):
            names = ", ".join(standby.backend.name for standby in standbys)
            raise StartError(f"two backends have the same name: {names}")
        self.default = standbys[0]

    def __iter__(self) -> Iterator[Standby]:
        return iter(self._standbys.values())

    def get(self, name: str) -> Standby:
        """Raises `Refused` (`unknown_backend`) with the nearest name there is."""
        if name not in self._standbys:
            near = difflib.get_close_matches(name[:64], self._standbys, n=1)
            raise Refused(
                ErrorCode.UNKNOWN_BACKEND,
                f"no backend {name[:64]!r} is offered here",
                detail={"nearest": near[0] if near else None},
            )
        return self._standbys[name]

    def of(self, chosen: str) -> Standby:
        """The backend that a chat chose; the default when it chose none or one that is gone."""
        return self._standbys.get(chosen, self.default)

    async def aclose(self) -> None:
        """Closes every backend. Idempotent."""
        await asyncio.gather(*(standby.aclose() for standby in self))
