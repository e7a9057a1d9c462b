"""A chat remembers which backend it chose; empty is the server's default."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Adds the column; chats of before have chosen none."""
    op.add_column("chats", sa.Column("backend", sa.Text, nullable=False, server_default=""))


def downgrade() -> None:
    """Forgets the choices."""
    op.drop_column("chats", "backend")
