"""Upgrades of the history's schema, run by Alembic from inside the package."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from gateway.errors import HistoryError, HistoryFault

if TYPE_CHECKING:
    from alembic.config import Config
    from sqlalchemy import Connection

__all__ = ["settings", "upgrade"]


def settings() -> Config:
    """What Alembic needs to find the revisions."""
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config


def upgrade(connection: Connection) -> None:
    """Brings the schema to the newest revision, inside the caller's transaction.

    Raises `HistoryError` (NEWER) when the database has a revision that this release lacks.
    """
    from alembic import command
    from alembic.util import CommandError

    config = settings()
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, "head")
    except CommandError as error:
        raise HistoryError(
            HistoryFault.NEWER,
            "the conversations were written by a newer release of greenroom; nothing was changed",
        ) from error
