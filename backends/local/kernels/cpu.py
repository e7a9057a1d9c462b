"""The C++ kernels: compiled once for this machine, cached, called through ctypes.

The source has a plain C interface and no PyTorch header, so that it compiles in seconds and one
build serves every PyTorch. Tensors give their addresses; every size is checked or made here.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import mmap
import os
import platform
import shutil
import subprocess
import tempfile
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import structlog
import torch
import torch.nn.functional as F

from backends.local.kernels.draws import draw_rows
from backends.local.kernels.pages import places
from backends.local.layers import RopeTables
from backends.local.quantize import QuantLinear

if TYPE_CHECKING:
    from collections.abc import Sequence
    from concurrent.futures import Future

    from torch import Tensor

    from backends.local.kernels.batch import Batch, Drawing
    from backends.local.layers import Layer
    from backends.local.model_config import KVDtype, ModelConfig
    from backends.local.quantize import QuantModel
    from backends.local.sampling import Draw

__all__ = ["CpuKernels", "CpuSteps", "build", "kernel_cache", "start_build", "variants"]

_log = structlog.get_logger()

_SOURCES = (
    "cpu.cpp",
    "attention.h",
    "attention_avx2.h",
    "attention_vnni.h",
    "gemm.h",
    "gemm_avx2.h",
    "gemm_vnni.h",
    "helpers.h",
    "plan.h",
    "sample.h",
    "team.h",
    "vector.h",
)
_FLAGS = ("-O3", "-std=c++20", "-shared", "-fPIC", "-fopenmp", "-ffp-contract=off")
_VARIANTS = {
    "avx512": ("avx2", "f16c", "avx512f", "avx512bw", "avx512vl", "avx512_vnni"),
    "avx2": ("avx2", "f16c"),
}
"""What the CPU must have for each build, best first."""

_BLOCK = 16  # outputs in a block of packed weights
_MAX_DIM = 512
_LINE, _HUGE = 64, 1 << 21  # bytes of a cache line and of a huge page
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


# Mirrors of the structs in plan.h and gemm.h.


class _Linear(ctypes.Structure):
    _fields_ = [
        ("weight", ctypes.c_void_p),
        ("scale", ctypes.c_void_p),
        ("n", ctypes.c_int32),
        ("k", ctypes.c_int32),
        ("max_code", ctypes.c_int32),
    ]


class _Layer(ctypes.Structure):
    _fields_ = [
        *((name, _Linear) for name in ("qkv", "out", "gate_up", "down")),
        ("before_attention", ctypes.c_void_p),
        ("before_mlp", ctypes.c_void_p),
        ("qk_norm", ctypes.c_void_p),
        ("after_attention", ctypes.c_void_p),
        ("after_mlp", ctypes.c_void_p),
        *((name, ctypes.c_int32) for name in ("owns", "group", "row", "window", "rope")),
    ]


class _Model(ctypes.Structure):
    _fields_ = [
        ("embedding", _Linear),
        ("head", _Linear),
        ("norm", ctypes.c_void_p),
        ("embed_factor", ctypes.c_void_p),
        ("layers", ctypes.POINTER(_Layer)),
        *(
            (name, ctypes.c_int32)
            for name in (
                "layer_count",
                "hidden",
                "q_heads",
                "kv_heads",
                "head_dim",
                "inner",
                "vocab",
                "gelu",
            )
        ),
        *((name, ctypes.c_float) for name in ("eps", "attention_scale")),
    ]


class _Group(ctypes.Structure):
    _fields_ = [
        ("pages", ctypes.c_void_p),
        ("slots", ctypes.c_void_p),
        ("first_page", ctypes.c_void_p),
        ("page_bytes", ctypes.c_int64),
        ("width", ctypes.c_int32),
    ]


class _Batch(ctypes.Structure):
    _fields_ = [
        *(
            (name, ctypes.c_void_p)
            for name in ("ids", "positions", "starts", "lengths", "wanted_rows")
        ),
        ("groups", ctypes.POINTER(_Group)),
        ("cos", ctypes.POINTER(ctypes.c_void_p)),
        ("sin", ctypes.POINTER(ctypes.c_void_p)),
        ("logits", ctypes.c_void_p),
        ("largest", ctypes.c_void_p),
        ("scratch", ctypes.c_void_p),
        ("scratch_bytes", ctypes.c_int64),
        *((name, ctypes.c_int32) for name in ("tokens", "sequences", "wanted", "threads", "pages")),
    ]


class CpuKernels:
    """A compiled library; see `build`."""

    def __init__(self, path: Path, variant: str) -> None:
        self.variant = variant
        library = ctypes.CDLL(str(path))  # calls release the interpreter's lock
        self.forward = library.greenroom_forward
        self.forward.argtypes = [ctypes.POINTER(_Model), ctypes.POINTER(_Batch)]
        self.forward.restype = ctypes.c_int32
        self.scratch_bytes = library.greenroom_scratch_bytes
        self.scratch_bytes.argtypes = self.forward.argtypes
        self.scratch_bytes.restype = ctypes.c_int64
        self.inputs_together: int = library.greenroom_inputs_together()
        self.raised_by: int = library.greenroom_raised_by()
        self.draw = library.greenroom_draw
        self.draw.argtypes = [ctypes.c_void_p] * 5 + [ctypes.c_int32] * 3
        self.draw.restype = None

    @staticmethod
    def supports(config: ModelConfig) -> bool:
        """Whether the sizes suit the vector registers; all models we know do."""
        sizes = (config.hidden_size, config.intermediate_size, config.head_dim)
        return all(size % _BLOCK == 0 for size in sizes) and config.head_dim <= _MAX_DIM


class _Arena:
    """Memory for weights in huge pages where the system gives them: fewer misses, faster reads."""

    def __init__(self, size: int) -> None:
        # Private: what is shared has huge pages only where the system is told so.
        self._region = mmap.mmap(-1, size + _HUGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        with contextlib.suppress(OSError, AttributeError):
            self._region.madvise(mmap.MADV_HUGEPAGE)
        self._bytes = torch.frombuffer(self._region, dtype=torch.uint8)
        self._used = -self._bytes.data_ptr() % _HUGE

    def put(self, codes: Tensor, raised_by: int) -> int:
        """Copies an int8 tensor in, every byte so much higher, modulo 256; its address."""
        size = codes.numel()
        into = self._bytes[self._used : self._used + size]
        into.copy_(codes.reshape(-1).view(torch.uint8))
        into += raised_by
        self._used += size + -size % _LINE
        return into.data_ptr()


class CpuSteps:
    """Implements `Steps` with the kernels; equal to `Int8Steps` bit for bit.

    Keeps packed copies of the model's codes. Not thread-safe.
    """

    kv_dtype: KVDtype = "int8"
    device = "cpu"
    row_budget = 4  # one reading of the weights feeds them all

    def __init__(self, model: QuantModel, kernels: CpuKernels) -> None:
        config = model.config
        self.numerics = model.numerics
        self._config = config
        self._kernels = kernels
        self._keep: list[object] = []  # what the structs below point into
        self._ropes = RopeTables(config)
        self._places = places(config.kv_layout("int8"))
        self._arena = _Arena(_packed_bytes(model))
        layers = (_Layer * len(model.layers))(
            *(self._layer(index, layer) for index, layer in enumerate(model.layers))
        )
        self._keep.append(layers)
        embedding = self._linear(model.embedding)
        tied = model.head is model.embedding
        self._model = _Model(
            embedding,
            embedding if tied else self._linear(model.head),
            self._address(model.norm),
            self._address(model.embed_factor),
            layers,
            len(layers),
            config.hidden_size,
            config.q_heads,
            config.kv_heads,
            config.head_dim,
            config.intermediate_size,
            config.vocab_size,
            config.activation == "gelu_tanh",
            config.rms_eps,
            config.attention_scale,
        )
        self._scratch = torch.empty(0, dtype=torch.uint8)
        # The logits of the last step, while they are in use, their memory, their blocks' largest.
        self._last: tuple[weakref.ref[Tensor], Tensor, Tensor] | None = None
        self._spare = torch.empty(0)  # memory of logits that were used up

    def run(self, batch: Batch) -> Tensor:
        config = self._config
        memory = self._memory(len(batch.wanted) * config.vocab_size)
        logits = memory[: len(batch.wanted) * config.vocab_size].view(-1, config.vocab_size)
        largest = torch.empty(len(batch.wanted), -(-config.vocab_size // _BLOCK))
        ropes = self._ropes.upto(batch.end)
        groups = (_Group * len(batch.tables))(
            *(
                _Group(
                    table.pages.data_ptr(),
                    table.slots.data_ptr(),
                    table.first_page.data_ptr(),
                    table.pages.shape[1],
                    table.slots.shape[1],
                )
                for table in batch.tables
            )
        )
        addresses = ctypes.c_void_p * len(ropes)
        step = _Batch(
            batch.tokens.data_ptr(),
            batch.positions.data_ptr(),
            batch.starts.data_ptr(),
            batch.lengths.data_ptr(),
            batch.wanted.data_ptr(),
            groups,
            addresses(*(cos.data_ptr() for cos, _ in ropes)),
            addresses(*(sin.data_ptr() for _, sin in ropes)),
            logits.data_ptr(),
            largest.data_ptr(),
            0,
            0,
            len(batch.tokens),
            len(batch.lengths),
            len(batch.wanted),
            torch.get_num_threads(),
            max(table.slots.shape[1] for table in batch.tables),
        )
        needed = self._kernels.scratch_bytes(self._model, step)
        if needed > len(self._scratch):
            self._scratch = torch.empty(needed, dtype=torch.uint8)
        step.scratch, step.scratch_bytes = self._scratch.data_ptr(), len(self._scratch)
        failed = self._kernels.forward(self._model, step)
        assert not failed
        self._last = weakref.ref(logits), memory, largest
        return logits

    def draw(self, logits: Tensor, draws: Sequence[Draw | None]) -> Drawing:
        last, self._last = self._last, None
        largest = None
        if last is not None and last[0]() is logits:
            _, self._spare, largest = last
        tokens = draw_rows(self._kernels, logits, draws, largest)
        return lambda: tokens

    def _memory(self, count: int) -> Tensor:
        """Room for logits, that of used up ones where it suffices: new pages take their time."""
        spare, self._spare = self._spare, torch.empty(0)
        return spare if len(spare) >= count else torch.empty(count)

    def _layer(self, index: int, layer: Layer[QuantLinear]) -> _Layer:
        spec = layer.spec
        group, row = self._places[index if spec.kv_source is None else spec.kv_source]
        return _Layer(
            self._linear(layer.qkv),
            self._linear(layer.out),
            self._linear(_interleaved(layer.gate_up)),
            self._linear(layer.down),
            self._address(layer.before_attention),
            self._address(layer.before_mlp),
            self._address(layer.qk_norm),
            self._address(layer.after_attention),
            self._address(layer.after_mlp),
            spec.kv_source is None,
            group,
            row,
            spec.window or 0,
            self._ropes.of(spec),
        )

    def _linear(self, linear: QuantLinear) -> _Linear:
        outputs, inputs = linear.codes.shape
        padding = -outputs % _BLOCK
        codes = F.pad(linear.codes, (0, 0, 0, padding))
        return _Linear(
            self._arena.put(_packed(codes, self._kernels.inputs_together), self._kernels.raised_by),
            self._address(F.pad(linear.scale, (0, padding))),
            outputs,
            inputs,
            linear.max_code,
        )

    def _address(self, tensor: Tensor | None) -> int | None:
        if tensor is None:
            return None
        tensor = tensor.contiguous()
        self._keep.append(tensor)
        return tensor.data_ptr()


def _packed_bytes(model: QuantModel) -> int:
    """An upper bound of what the packed weights take."""
    linears = [model.embedding] if model.head is model.embedding else [model.embedding, model.head]
    for layer in model.layers:
        linears += [layer.qkv, layer.out, layer.gate_up, layer.down]
    return sum((len(one.scale) + _BLOCK) * one.codes.shape[1] + _LINE for one in linears)


def _packed(codes: Tensor, together: int) -> Tensor:
    """Blocks of 16 outputs, P inputs of each together: [N, K] to [N / 16, K / P, 16, P]."""
    outputs, inputs = codes.shape
    blocks = codes.view(outputs // _BLOCK, _BLOCK, inputs // together, together)
    return blocks.transpose(1, 2).contiguous()


def _interleaved(gate_up: QuantLinear) -> QuantLinear:
    """Eight gates, then their eight ups, and so on, so that one block holds both."""
    half = _BLOCK // 2
    order = torch.arange(len(gate_up.scale)).view(2, -1, half).transpose(0, 1).flatten()
    return QuantLinear(gate_up.codes[order], gate_up.scale[order], gate_up.max_code)
