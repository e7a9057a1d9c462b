"""CUDA C++ kernels, compiled when they are needed by NVRTC, which comes with torch's CUDA build.

A launch goes to torch's current stream, so it is captured in graphs, and can begin while the launch
before it ends (`chain`). Everything here raises `RuntimeError` or `OSError` where a library or the
device does not play along.
"""

from __future__ import annotations

import ctypes
from ctypes import byref
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

__all__ = ["Kernel", "TensorMap", "binary", "boxes", "kernels"]

_HERE = Path(__file__).parent
_FLAGS = ("--gpu-architecture=sm_90a", "--std=c++17", "-fmad=false")
_CHAINED = 6  # of CUlaunchAttributeID
_MOST_SHARED, _CARVEOUT = 8, 9  # of CUfunction_attribute


class TensorMap(ctypes.Array[ctypes.c_uint64]):
    """CUtensorMap, passed to kernels by value."""

    _type_ = ctypes.c_uint64
    _length_ = 16


if TYPE_CHECKING:
    Argument = (
        Tensor | int | ctypes.c_longlong | ctypes.c_float | TensorMap | ctypes.Structure | None
    )


class _Attribute(ctypes.Structure):
    _fields_ = (("id", ctypes.c_int), ("pad", ctypes.c_int), ("value", ctypes.c_uint * 16))


class _Config(ctypes.Structure):
    _fields_ = (
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared", ctypes.c_uint),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.POINTER(_Attribute)),
        ("count", ctypes.c_uint),
    )


class Kernel:
    """One kernel of a loaded module. `shared`: the dynamic shared memory that it may ask for."""

    def __init__(self, function: ctypes.c_void_p, shared: int = 0) -> None:
        self._function = function
        # A multiprocessor changes how much of its cache is shared memory only when it is empty:
        # were that less for kernels of little, a launch that wants much could not begin beside.
        _driver("cuFuncSetAttribute", function, _CARVEOUT, 100)
        if shared:
            _driver("cuFuncSetAttribute", function, _MOST_SHARED, shared)

    def launch(
        self,
        grid: tuple[int, int, int],
        threads: int,
        *args: Argument,
        shared: int = 0,
        chained: bool = False,
    ) -> None:
        """On the current stream.

        Tensors are passed by address, None as no address, plain ints as int32.
        """
        held = [_argument(arg) for arg in args]
        pointers = (ctypes.c_void_p * len(held))(*(ctypes.addressof(each) for each in held))
        attributes = (_Attribute * 1)()
        attributes[0].id, attributes[0].value[0] = _CHAINED, chained
        config = _Config(
            grid,
            (threads, 1, 1),
            shared,
            torch.cuda.current_stream().cuda_stream,
            attributes,
            1,
        )
        _driver("cuLaunchKernelEx", byref(config), self._function, pointers, None)


def kernels(source: str, shared: dict[str, int], **defines: int) -> dict[str, Kernel]:
    """The kernels of a file here, by name, on the current device; `shared` as `Kernel` takes it."""
    module = _module(source, tuple(sorted(defines.items())), torch.cuda.current_device())
    found = {}
    for name, size in shared.items():
        function = ctypes.c_void_p()
        _driver("cuModuleGetFunction", byref(function), module, name.encode())
        found[name] = Kernel(function, size)
    return found


def boxes(start: Tensor, rows: int, row_bytes: int, box_rows: int) -> TensorMap:
    """Boxes of `box_rows` times 128 bytes in rows that begin at `start`, swizzled as they come to
    shared memory; zeros where there is nothing."""
    space = (ctypes.c_uint64 * 24)()  # the map must lie at a multiple of 64 bytes
    at = ctypes.addressof(space) + -ctypes.addressof(space) % 64
    _driver(
        "cuTensorMapEncodeTiled",
        ctypes.c_void_p(at),
        0,  # bytes
        2,
        ctypes.c_void_p(start.data_ptr()),
        (ctypes.c_uint64 * 2)(row_bytes, rows),
        (ctypes.c_uint64 * 1)(row_bytes),
        (ctypes.c_uint32 * 2)(128, box_rows),
        (ctypes.c_uint32 * 2)(1, 1),
        0,
        3,  # the swizzle over 128 bytes
        2,  # to the L2 cache by 128 bytes
        0,
    )
    return TensorMap.from_buffer_copy(ctypes.string_at(at, ctypes.sizeof(TensorMap)))


def _argument(arg: Argument) -> ctypes._CData:
    if arg is None or isinstance(arg, torch.Tensor):
        return ctypes.c_void_p(None if arg is None else arg.data_ptr())
    return ctypes.c_int(arg) if isinstance(arg, int) else arg


@cache
def _module(source: str, defines: tuple[tuple[str, int], ...], device: int) -> ctypes.c_void_p:
    module = ctypes.c_void_p()
    torch.cuda.synchronize(device)  # makes the context where there is none
    _driver("cuModuleLoadData", byref(module), binary(source, defines))
    return module


def binary(source: str, defines: Sequence[tuple[str, int]]) -> bytes:
    """Machine code for compute capability 9.0; needs no device."""
    program, size = ctypes.c_void_p(), ctypes.c_size_t()
    headers = {path.name.encode(): path.read_bytes() for path in _HERE.glob("*.cuh")}
    text = ctypes.c_char_p * len(headers)
    _nvrtc(
        "nvrtcCreateProgram",
        byref(program),
        (_HERE / source).read_bytes(),
        source.encode(),
        len(headers),
        text(*headers.values()),
        text(*headers),
    )
    flags = [*_FLAGS, *(f"-D{name}={value}" for name, value in defines)]
    given = (ctypes.c_char_p * len(flags))(*(flag.encode() for flag in flags))
    try:
        _nvrtc("nvrtcCompileProgram", program, len(flags), given)
        _nvrtc("nvrtcGetCUBINSize", program, byref(size))
        code = ctypes.create_string_buffer(size.value)
        _nvrtc("nvrtcGetCUBIN", program, code)
    except RuntimeError as error:
        _nvrtc("nvrtcGetProgramLogSize", program, byref(size))
        log = ctypes.create_string_buffer(size.value)
        _nvrtc("nvrtcGetProgramLog", program, log)
        raise RuntimeError(f"{source}: {log.value.decode()}") from error
    finally:
        _nvrtc("nvrtcDestroyProgram", byref(program))
    return code.raw


def _driver(name: str, *args: object) -> None:
    code = getattr(_library("libcuda.so.1"), name)(*args)
    if code:
        raise RuntimeError(f"{name} gave CUDA error {code}")


def _nvrtc(name: str, *args: object) -> None:
    code = getattr(_compiler(), name)(*args)
    if code:
        raise RuntimeError(f"{name} gave NVRTC error {code}")


@cache
def _library(name: str) -> ctypes.CDLL:
    return ctypes.CDLL(name)


@cache
def _compiler() -> ctypes.CDLL:
    """NVRTC of torch's own CUDA version, wherever wheels or the system keep it."""
    name = f"libnvrtc.so.{(torch.version.cuda or '13').split('.')[0]}"
    beside = sorted(Path(torch.__file__).parents[1].glob(f"nvidia/*/lib/{name}"))
    for place in (*map(str, beside), name):
        try:
            return ctypes.CDLL(place)
        except OSError:
            continue
    raise OSError(f"there is no {name}")
