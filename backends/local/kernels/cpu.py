"""The C++ kernels: compiled once for this machine, cached, called through ctypes.

The source has a plain C interface and no PyTorch header, so that it compiles in seconds and one
build serves every PyTorch. Tensors give their addresses; every size is checked or made here.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from backends.local.kernels.structs import CBatch, CModel

if TYPE_CHECKING:
    from concurrent.futures import Future

    from backends.local.model_config import ModelConfig

__all__ = ["BLOCK", "CpuKernels", "build", "kernel_cache", "start_build", "variants"]

_log = structlog.get_logger()

_SOURCES = (
    "cpu.cpp",
    "attend.h",
    "attention.h",
    "attention_avx2.h",
    "attention_vnni.h",
    "coarse.h",
    "coarse_avx2.h",
    "coarse_vnni.h",
    "gemm.h",
    "gemm_avx2.h",
    "gemm_vnni.h",
    "helpers.h",
    "plan.h",
    "sample.h",
    "step.h",
    "team.h",
    "vector.h",
)
_FLAGS = ("-O3", "-std=c++20", "-shared", "-fPIC", "-fopenmp", "-ffp-contract=off")
_VARIANTS = {
    "avx512": ("avx2", "f16c", "avx512f", "avx512bw", "avx512vl", "avx512_vnni"),
    "avx2": ("avx2", "f16c"),
}
"""What the CPU must have for each build, best first."""

BLOCK = 16
"""Outputs in a block of packed weights."""

_MAX_DIM = 512
_COMPILE_TIMEOUT_S = 300


def variants() -> list[str]:
    """The builds that this machine can run, best first."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return []
    flags: set[str] = set()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("flags"):
                flags = set(line.split(":", 1)[1].split())
                break
    return [name for name, needs in _VARIANTS.items() if flags.issuperset(needs)]


def kernel_cache() -> Path:
    """Where compiled kernels are kept for every data folder: the user's cache (XDG)."""
    named = os.environ.get("XDG_CACHE_HOME")
    return (
        (Path(named) if named else Path(os.path.expanduser("~/.cache"))) / "greenroom" / "kernels"
    )


def build(cache: Path, variant: str | None = None) -> CpuKernels | None:
    """The kernels for this machine, from `cache` or compiled into it; None where there are none.

    `variant` is one of `variants()`, the best unless told. Says once, loudly, why there are none:
    the pure PyTorch path then gives the same answers, much slower.
    """
    can = variants()
    if not can:
        _log.warning("kernels_missing", reason="this CPU has no AVX2", effect="slow replies")
        return None
    name = variant or can[0]
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        _log.warning("kernels_missing", reason="no C++ compiler (g++)", effect="slow replies")
        return None
    needs = (f"-m{need.replace('_', '')}" for need in _VARIANTS[name])
    command = [compiler, *_FLAGS, *needs]
    folder = Path(__file__).parent
    digest = hashlib.sha256(" ".join(command).encode())
    for source in _SOURCES:
        digest.update((folder / source).read_bytes())
    target = cache / f"{name}-{digest.hexdigest()[:16]}.so"
    try:
        if not target.is_file():
            cache.mkdir(parents=True, exist_ok=True)
            _compile(command, folder / _SOURCES[0], target)
        return CpuKernels(target, name)
    except subprocess.SubprocessError as error:
        output = getattr(error, "stderr", None) or str(error)
        _log.warning("kernels_missing", reason="the compiler failed", detail=str(output)[-2000:])
    except OSError as error:
        _log.warning("kernels_missing", reason=str(error), effect="slow replies")
    return None


def start_build(cache: Path) -> Future[CpuKernels | None]:
    """`build` on a thread of its own, for a start that has other things to do meanwhile."""
    pool = ThreadPoolExecutor(1, thread_name_prefix="compile-kernels")
    built = pool.submit(build, cache)
    pool.shutdown(wait=False)
    return built


def _compile(command: list[str], source: Path, target: Path) -> None:
    """Into a file of its own, then renamed: two processes may do it at once."""
    handle, made = tempfile.mkstemp(dir=target.parent, suffix=".partial")
    os.close(handle)
    try:
        subprocess.run(
            [*command, str(source), "-o", made],
            check=True,
            capture_output=True,
            text=True,
            timeout=_COMPILE_TIMEOUT_S,
        )
        Path(made).replace(target)
    finally:
        Path(made).unlink(missing_ok=True)
    _log.info("kernels_compiled", file=target.name)


class CpuKernels:
    """A compiled library; see `build`."""

    def __init__(self, path: Path, variant: str) -> None:
        self.variant = variant
        library = ctypes.CDLL(str(path))  # calls release the interpreter's lock
        self.forward = library.greenroom_forward
        self.forward.argtypes = [ctypes.POINTER(CModel), ctypes.POINTER(CBatch)]
        self.forward.restype = ctypes.c_int32
        self.scratch_bytes = library.greenroom_scratch_bytes
        self.scratch_bytes.argtypes = self.forward.argtypes
        self.scratch_bytes.restype = ctypes.c_int64
        self.inputs_together: int = library.greenroom_inputs_together()
        self.raised_by: int = library.greenroom_raised_by()
        self.coarse_bytes = library.greenroom_coarse_bytes
        self.coarse_bytes.argtypes = [ctypes.c_int32]
        self.coarse_bytes.restype = ctypes.c_int64
        self.coarsen = library.greenroom_coarsen
        self.coarsen.argtypes = [*[ctypes.c_void_p] * 8, ctypes.c_int32]
        self.coarsen.restype = None
        self.draw = library.greenroom_draw
        self.draw.argtypes = [ctypes.c_void_p] * 5 + [ctypes.c_int32] * 3
        self.draw.restype = None

    @staticmethod
    def supports(config: ModelConfig) -> bool:
        """Whether the sizes suit the vector registers; all models we know do."""
        sizes = (config.hidden_size, config.intermediate_size, config.head_dim)
        return all(size % BLOCK == 0 for size in sizes) and config.head_dim <= _MAX_DIM
