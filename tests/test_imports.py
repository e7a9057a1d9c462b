"""The import law of the rooms, by walking every import; and what `import gateway` costs."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("backends", "gateway", "kvstore", "personas")
TOOLS = ("benchmarks", "tests")
HEAVY = ("torch", "transformers")

# Who may import what of ours, most special room first.
LAW: dict[str, tuple[str, ...]] = {
    "backends/local": ("backends", "kvstore"),
    "backends": ("backends",),
    "gateway": ("gateway", "personas", "backends"),
    "kvstore": ("kvstore",),
    "personas": ("personas", "backends.api"),
}
# Files outside backends/local that may import torch.
TORCH = ("kvstore/copies.py", "kvstore/device.py")
# The gateway's side of the local engine: in backends/local, loaded by the gateway, free of torch.
LIGHT = ("backends/local/client.py", "backends/local/settings.py", "backends/local/wire.py")


def sources() -> list[Path]:
    return sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))


def imports(path: Path) -> set[str]:
    """Every module that a file imports anywhere in it, `from a import b` as `a` and `a.b`."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def inside(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


@pytest.mark.parametrize("path", sources(), ids=lambda p: str(p.relative_to(ROOT)))
def test_import_law(path: Path) -> None:
    """A room imports only the rooms that the law names, and never tests or benchmarks."""
    name = path.relative_to(ROOT).as_posix()
    allowed = next(may for room, may in LAW.items() if name.startswith(room + "/"))
    modules = imports(path)
    # `from backends import api` counts as the module backends.api, not as the whole package.
    ours = {m for m in modules if m.split(".")[0] in (*ROOMS, *TOOLS)}
    ours -= {m for m in ours if any(o != m and inside(o, m) for o in ours)}
    for module in sorted(ours):
        assert any(inside(module, may) for may in allowed), f"{name} imports {module}"
    if not name.startswith("backends/local/") and name not in TORCH:
        assert not [m for m in modules if m.split(".")[0] in HEAVY], f"{name} imports torch"
    if name in LIGHT:
        assert not [m for m in modules if m.split(".")[0] in (*HEAVY, "kvstore")]


@pytest.mark.parametrize("module", ["gateway", "gateway.cli", "gateway.app", "backends.registry"])
def test_gateway_without_torch(module: str) -> None:
    """Importing the gateway loads neither torch nor transformers."""
    program = (
        f"import sys, {module}; print([m for m in ('torch', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.strip() == "[]"


def test_gateway_imports_fast() -> None:
    """`import gateway` takes under 150 ms (best of five, beyond the interpreter's own start)."""
    program = "import time; t = time.perf_counter(); import gateway; print(time.perf_counter() - t)"
    seconds = [
        float(
            subprocess.run(
                [sys.executable, "-c", program],
                capture_output=True,
                text=True,
                check=True,
                cwd=ROOT,
            ).stdout
        )
        for _ in range(5)
    ]
    assert min(seconds) < 0.150
