"""What can go wrong with a model on disk. Every message is one line for people.

ModelError              root of the room
  WeightsMissing        a package, folder or file that must be there is not
  WeightsDamaged        a file that is there but is not what it should be
  UnsupportedModel      a sound model of a kind that this engine cannot run
"""

from __future__ import annotations

__all__ = ["ModelError", "UnsupportedModel", "WeightsDamaged", "WeightsMissing"]


class ModelError(Exception):
    """A model cannot be used; `message` is one line that says which and why."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class WeightsMissing(ModelError):
    """Something that must be there is not."""


class WeightsDamaged(ModelError):
    """A file is not what it should be: cut short, changed, or not of its format."""


class UnsupportedModel(ModelError):
    """A sound model that this engine has no code for."""
