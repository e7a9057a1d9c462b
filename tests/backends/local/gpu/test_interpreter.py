"""The kernels' tests in Triton's interpreter, in a process where nobody imported triton before."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

FILES = ("test_draws.py", "test_kernels.py", "test_steps.py")


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
@pytest.mark.parametrize("file", FILES)
def test_kernels_pass_in_the_interpreter(file: str) -> None:
    """Every test of the file passes there, and none but the device's own is skipped."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider",
         "-m", "not gpu", str(Path(__file__).parent / file)],
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=900,
    )  # fmt: skip
    report = done.stdout[-4000:] + done.stderr[-2000:]
    assert done.returncode == 0, report
    assert " passed" in done.stdout, report
    assert "SKIPPED" not in done.stdout, report
