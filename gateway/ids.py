"""New names for chats, messages, turns and sessions."""

from __future__ import annotations

import secrets

__all__ = ["new_id"]


def new_id(kind: str) -> str:
    """`kind`, an underscore, and 80 random bits: unguessable and safe in a path."""
    return f"{kind}_{secrets.token_hex(10)}"
