"""Which backends there are, by name. Factories import inside, so a name costs nothing until used.

Other packages add theirs through the entry point group `greenroom.backends`: a callable that takes
no arguments and returns a `backends.api.Backend`.
"""

from __future__ import annotations

import difflib
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

from backends.errors import BackendError, BackendErrorCode

if TYPE_CHECKING:
    from backends.api import Backend
    from backends.local.settings import EngineSettings
    from backends.openai_compat import OpenAICompatSettings

__all__ = ["make", "names"]

GROUP = "greenroom.backends"
OWN = ("local", "scripted", "remote")


def names() -> tuple[str, ...]:
    """Every backend that `make` knows, ours first."""
    return OWN + tuple(sorted({e.name for e in entry_points(group=GROUP)} - set(OWN)))


def make(name: str, engine: EngineSettings, remote: OpenAICompatSettings | None = None) -> Backend:
    """A backend that is not started yet. `engine` is read by `local` alone, `remote` by `remote`.

    Raises `BackendError` (BAD_REQUEST) naming the nearest known name.
    """
    if name == "local":
        from backends.local.client import LocalBackend

        return LocalBackend(engine)
    if name == "scripted":
        from backends.scripted import ScriptedBackend

        return ScriptedBackend()
    if name == "remote":
        from backends.openai_compat import OpenAICompatBackend

        if remote is None:
            raise BackendError(BackendErrorCode.BAD_REQUEST, "the backend remote needs a url")
        return OpenAICompatBackend(remote)
    for entry in entry_points(group=GROUP, name=name):
        made: Backend = entry.load()()
        return made
    near = difflib.get_close_matches(name, names(), n=1)
    hint = f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(names())}"
    raise BackendError(BackendErrorCode.BAD_REQUEST, f"no backend {name!r}{hint}")
