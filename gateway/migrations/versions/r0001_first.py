"""The first schema: chats, their messages as a tree, their turns."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Makes the three tables."""
    op.create_table(
        "chats",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("persona_id", sa.Text, nullable=False),
        sa.Column("persona_revision", sa.Text, nullable=False),
        sa.Column("persona_name", sa.Text, nullable=False),
        sa.Column("user", sa.Text, nullable=False),
        sa.Column("head", sa.Text),
        sa.Column("preview", sa.Text, nullable=False),
        sa.Column("created", sa.Float, nullable=False),
        sa.Column("updated", sa.Float, nullable=False),
    )
    op.create_index("chats_by_updated", "chats", ["updated"])
    op.create_table(
        "messages",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("chat", sa.Text, sa.ForeignKey("chats.id", ondelete="CASCADE"), nullable=False),
        sa.Column("position", sa.Integer, nullable=False),
        sa.Column("parent", sa.Text, sa.ForeignKey("messages.id")),
        sa.Column("turn", sa.Text),
        sa.Column("role", sa.Text, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("text", sa.Text, nullable=False),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("stats", sa.JSON),
        sa.Column("sampled_tokenizer", sa.Text),
        sa.Column("sampled_ids", sa.LargeBinary),
        sa.Column("created", sa.Float, nullable=False),
        sa.UniqueConstraint("chat", "position", name="messages_in_order"),
    )
    op.create_index("messages_by_status", "messages", ["status"])
    op.create_table(
        "turns",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("chat", sa.Text, sa.ForeignKey("chats.id", ondelete="CASCADE"), nullable=False),
        sa.Column("request", sa.Text, nullable=False),
        sa.Column("user_message", sa.Text, sa.ForeignKey("messages.id"), nullable=False),
        sa.Column("reply", sa.Text, sa.ForeignKey("messages.id"), nullable=False),
        sa.Column("error", sa.JSON),
        sa.Column("created", sa.Float, nullable=False),
        sa.Column("ended", sa.Float),
        sa.UniqueConstraint("chat", "request", name="turns_once"),
    )


def downgrade() -> None:
    """Not offered: going back would lose conversations."""
    raise NotImplementedError("there is nothing before the first schema")
