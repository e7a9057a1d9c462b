"""Where the GPU's kernels run in a test: on a CUDA device, or in Triton's interpreter.

The interpreter must be chosen before triton is imported, by whomever. So without a CUDA device the
tests of kernels skip here, and `test_interpreter.py` runs them in a process of its own.
"""

from __future__ import annotations

import importlib.util
import os

import numpy as np
import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


@pytest.fixture(scope="session")
def device() -> str:
    """`cuda`, or `cpu` where the interpreter runs the kernels."""
    if importlib.util.find_spec("triton") is None:
        pytest.skip("triton is not installed")
    if INTERPRETED:
        _let_numpy_index()
        np.seterr(over="ignore", invalid="ignore")  # in lanes that a `tl.where` throws away
        torch.set_num_threads(1)
        return "cpu"
    if torch.cuda.is_available():
        return "cuda"
    pytest.skip("no CUDA device; test_interpreter.py runs this in Triton's interpreter")


def _let_numpy_index() -> None:
    """numpy 2.4 makes no int of an array of one element; triton 3.6's interpreter asks for it."""
    from triton.runtime import interpreter

    patch = interpreter._patch_lang_tensor

    def patched(tensor: type, scope: object) -> None:
        patch(tensor, scope)
        scope.set_attr(  # type: ignore[attr-defined]
            tensor, "__index__", lambda self: int(self.handle.data.item())
        )

    interpreter._patch_lang_tensor = patched
