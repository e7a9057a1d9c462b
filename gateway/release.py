"""Which release this is."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

__all__ = ["release"]


def release() -> str:
    """`greenroom/` and the version, as in User-Agent."""
    try:
        return f"greenroom/{version('greenroom')}"
    except PackageNotFoundError:  # run from a source tree that was never installed
        return "greenroom/0+source"
