"""A chat has an author's note, and knows who the person is to the character."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Adds the columns; chats of before have neither."""
    op.add_column("chats", sa.Column("about", sa.Text, nullable=False, server_default=""))
    op.add_column("chats", sa.Column("note", sa.JSON))


def downgrade() -> None:
    """Forgets both."""
    op.drop_column("chats", "note")
    op.drop_column("chats", "about")
