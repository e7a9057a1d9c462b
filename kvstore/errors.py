"""What can go wrong in the store, root first.

StoreError              the store cannot be opened: one line for people
RecordDamaged           bytes that are not a whole record (a miss, counted; never leaves a tier)
"""

from __future__ import annotations

__all__ = ["RecordDamaged", "StoreError"]


class StoreError(Exception):
    """The store cannot be opened where it was told to; `message` is one line."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class RecordDamaged(StoreError):
    """Bytes that do not decode to exactly what was encoded."""
