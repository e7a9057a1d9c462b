"""Characters have revisions that chats stay with; imported chats keep what their file said."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Makes the two tables; the server fills the first with the characters it finds."""
    op.create_table(
        "persona_revisions",
        sa.Column("persona", sa.Text, primary_key=True),
        sa.Column("revision", sa.Text, primary_key=True),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("tags", sa.JSON, nullable=False),
        sa.Column("card", sa.Text, nullable=False),
        sa.Column("added", sa.Float, nullable=False),
    )
    op.create_table(
        "chat_files",
        sa.Column("chat", sa.Text, sa.ForeignKey("chats.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("format", sa.Text, nullable=False),
        sa.Column("header", sa.JSON, nullable=False),
        sa.Column("lines", sa.JSON, nullable=False),
        sa.Column("line_of", sa.JSON, nullable=False),
    )


def downgrade() -> None:
    """Forgets revisions and files; the chats stay."""
    op.drop_table("chat_files")
    op.drop_table("persona_revisions")
