"""Mirrors of the structs that the C++ kernels are given: plan.h, gemm.h and coarse.h say more."""

from __future__ import annotations

import ctypes

__all__ = ["CBatch", "CCoarse", "CGroup", "CLayer", "CLinear", "CModel"]


class CLinear(ctypes.Structure):
    _fields_ = [
        ("weight", ctypes.c_void_p),
        ("scale", ctypes.c_void_p),
        ("n", ctypes.c_int32),
        ("k", ctypes.c_int32),
        ("max_code", ctypes.c_int32),
    ]


class CLayer(ctypes.Structure):
    _fields_ = [
        *((name, CLinear) for name in ("qkv", "out", "gate_up", "down")),
        ("before_attention", ctypes.c_void_p),
        ("before_mlp", ctypes.c_void_p),
        ("qk_norm", ctypes.c_void_p),
        ("after_attention", ctypes.c_void_p),
        ("after_mlp", ctypes.c_void_p),
        *((name, ctypes.c_int32) for name in ("owns", "group", "row", "window", "rope")),
    ]


class CCoarse(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("blocks", "levels", "inputs", "weights")),
        *((name, ctypes.c_float) for name in ("step", "along", "lost", "longest")),
    ]


class CModel(ctypes.Structure):
    _fields_ = [
        ("embedding", CLinear),
        ("head", CLinear),
        ("coarse", CCoarse),
        ("norm", ctypes.c_void_p),
        ("embed_factor", ctypes.c_void_p),
        ("layers", ctypes.POINTER(CLayer)),
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


class CGroup(ctypes.Structure):
    _fields_ = [
        ("pages", ctypes.c_void_p),
        ("slots", ctypes.c_void_p),
        ("first_page", ctypes.c_void_p),
        ("page_bytes", ctypes.c_int64),
        ("width", ctypes.c_int32),
    ]


class CBatch(ctypes.Structure):
    _fields_ = [
        *(
            (name, ctypes.c_void_p)
            for name in ("ids", "positions", "starts", "lengths", "wanted_rows")
        ),
        ("groups", ctypes.POINTER(CGroup)),
        ("cos", ctypes.POINTER(ctypes.c_void_p)),
        ("sin", ctypes.POINTER(ctypes.c_void_p)),
        ("logits", ctypes.c_void_p),
        ("largest", ctypes.c_void_p),
        ("read", ctypes.c_void_p),
        ("scratch", ctypes.c_void_p),
        ("scratch_bytes", ctypes.c_int64),
        *((name, ctypes.c_int32) for name in ("tokens", "sequences", "wanted", "threads", "pages")),
    ]
