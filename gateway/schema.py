"""The tables of the history as they are now; `gateway/migrations/` says how they came to be."""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
)

__all__ = [
    "HEAD",
    "chat_files",
    "chats",
    "erasures",
    "messages",
    "metadata",
    "revisions",
    "turns",
]

HEAD = "0005"
"""The newest revision; a database that has it needs no Alembic at start."""

metadata = MetaData()

chats = Table(
    "chats",
    metadata,
    Column("id", Text, primary_key=True),
    Column("persona_id", Text, nullable=False),
    Column("persona_revision", Text, nullable=False),
    Column("persona_name", Text, nullable=False),
    Column("user", Text, nullable=False),
    Column("about", Text, nullable=False, server_default=""),
    Column("note", JSON(none_as_null=True)),
    Column("backend", Text, nullable=False, server_default=""),
    Column("head", Text),
    Column("preview", Text, nullable=False),
    Column("created", Float, nullable=False),
    Column("updated", Float, nullable=False),
    Index("chats_by_updated", "updated"),
)

# `position` orders the messages of a chat; `status` is 'live' while a reply is being spoken;
# `sampled_ids` are little-endian uint32 of the vocabulary `sampled_tokenizer`.
messages = Table(
    "messages",
    metadata,
    Column("id", Text, primary_key=True),
    Column("chat", Text, ForeignKey("chats.id", ondelete="CASCADE"), nullable=False),
    Column("position", Integer, nullable=False),
    Column("parent", Text, ForeignKey("messages.id")),
    Column("turn", Text),
    Column("role", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("text", Text, nullable=False),
    Column("status", Text, nullable=False),
    Column("stats", JSON(none_as_null=True)),
    Column("sampled_tokenizer", Text),
    Column("sampled_ids", LargeBinary),
    Column("created", Float, nullable=False),
    UniqueConstraint("chat", "position", name="messages_in_order"),
    Index("messages_by_status", "status"),
)

turns = Table(
    "turns",
    metadata,
    Column("id", Text, primary_key=True),
    Column("chat", Text, ForeignKey("chats.id", ondelete="CASCADE"), nullable=False),
    Column("request", Text, nullable=False),
    Column("user_message", Text, ForeignKey("messages.id"), nullable=False),
    Column("reply", Text, ForeignKey("messages.id"), nullable=False),
    Column("error", JSON(none_as_null=True)),
    Column("created", Float, nullable=False),
    Column("ended", Float),
    UniqueConstraint("chat", "request", name="turns_once"),
)

# Every state of a character that a chat may have begun with; `card` is its JSON, whose hash
# `revision` is.
revisions = Table(
    "persona_revisions",
    metadata,
    Column("persona", Text, primary_key=True),
    Column("revision", Text, primary_key=True),
    Column("name", Text, nullable=False),
    Column("tags", JSON(none_as_null=True), nullable=False),
    Column("card", Text, nullable=False),
    Column("added", Float, nullable=False),
)

# What the file of an imported chat said that a chat has no place for; `line_of` leads from
# messages to `lines`.
chat_files = Table(
    "chat_files",
    metadata,
    Column("chat", Text, ForeignKey("chats.id", ondelete="CASCADE"), primary_key=True),
    Column("format", Text, nullable=False),
    Column("header", JSON(none_as_null=True), nullable=False),
    Column("lines", JSON(none_as_null=True), nullable=False),
    Column("line_of", JSON(none_as_null=True), nullable=False),
)

# What backends have yet to delete of what they cached: `owner` as `Backend.forget` has it.
erasures = Table(
    "erasures",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=True),
    Column("backend", Text, nullable=False),
    Column("owner", Text, nullable=False),
    Column("created", Float, nullable=False),
)
