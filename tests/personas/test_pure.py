"""Prompts are made from the chat alone: what makes them can ask nothing else."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOM = Path(__file__).parents[2] / "personas"
PURE = (
    *("decorators", "lorebook", "lorebook_keys", "lorebook_reading", "lorebook_watch"),
    *("macro_clock", "macros", "prompt", "script", "trace", "window"),
)
OUTSIDE = {"asyncio", "io", "os", "pathlib", "random", "secrets", "socket", "subprocess", "sys"}
OUTSIDE |= {"threading", "time", "urllib", "uuid"}


@pytest.mark.parametrize("name", PURE)
def test_no_way_out(name: str) -> None:
    """No module that makes a prompt reads a file, a clock, a socket or a random number."""
    tree = ast.parse((ROOM / f"{name}.py").read_text())
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").split(".")[0])
        elif isinstance(node, ast.Attribute) and node.attr in {"now", "today", "utcnow"}:
            assert ast.unparse(node.value) == "self", f"line {node.lineno}"
        elif isinstance(node, ast.Name):
            assert node.id not in {"open", "eval", "exec", "hash"}, f"line {node.lineno}"
    assert not found & OUTSIDE
