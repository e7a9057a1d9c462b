"""Alembic's entry: runs the revisions on the connection it is given."""

from __future__ import annotations

from alembic import context

context.configure(
    connection=context.config.attributes["connection"],
    # SQLite rolls schema changes back like any other; the history begins its transactions itself.
    transactional_ddl=True,
    render_as_batch=True,
)
context.run_migrations()
