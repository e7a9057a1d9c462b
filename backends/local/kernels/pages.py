"""How keys and values lie in a page of KV: views of the raw bytes, shared by every kernel.

A page holds PAGE_TOKENS tokens of one layer group, aligned to absolute positions. For each layer
of the group, in order:

    int8     K codes [64, Hkv, D] | V codes [64, Hkv, D] | K scales fp16 [64, Hkv] | V scales fp16
    float32  K [64, Hkv, D] | V [64, Hkv, D]

Keys are stored after the rotary embedding. The arena of a group is uint8 [slots, page_bytes].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from kvstore.api import Layout

__all__ = [
    "PAGE_TOKENS",
    "SPAN_TOKENS",
    "GroupTable",
    "float_views",
    "int8_row_bytes",
    "int8_views",
    "places",
]

PAGE_TOKENS = 64

SPAN_TOKENS = 256
"""int8 attention folds its keys by spans of so many, aligned to absolute positions."""


@dataclass(frozen=True, slots=True)
class GroupTable:
    """Where the pages of one layer group lie, for every sequence of a batch.

    `pages`: uint8 [slots, page_bytes], written in place. `slots`: int32 [B, P]; entry (b, j) is
    the slot of the absolute page `first_page[b] + j` of sequence b; `first_page`: int32 [B].
    """

    pages: Tensor
    slots: Tensor
    first_page: Tensor


def places(layout: Layout) -> dict[int, tuple[int, int]]:
    """Group id and row of every layer that owns KV.

    Raises `ValueError` for a layout whose blocks are not pages.
    """
    if layout.block_tokens != PAGE_TOKENS:
        raise ValueError(f"blocks of {layout.block_tokens} tokens; a page has {PAGE_TOKENS}")
    return {
        layer: (group.id, row) for group in layout.groups for row, layer in enumerate(group.layers)
    }


def int8_row_bytes(kv_heads: int, head_dim: int) -> int:
    """Bytes of one layer in an int8 page."""
    return 2 * PAGE_TOKENS * kv_heads * (head_dim + 2)


def int8_views(
    page: Tensor, row: int, kv_heads: int, head_dim: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Views of one layer in one int8 page: K, V int8 [64, Hkv, D] and their fp16 scales [64, Hkv].

    `page`: uint8 [page_bytes]; `row` counts the layers of the group.
    """
    size = int8_row_bytes(kv_heads, head_dim)
    codes = PAGE_TOKENS * kv_heads * head_dim
    scales = PAGE_TOKENS * kv_heads * 2
    parts = torch.split(page[row * size : (row + 1) * size], [codes, codes, scales, scales])
    shape = (PAGE_TOKENS, kv_heads, head_dim)
    k, v = (part.view(torch.int8).view(shape) for part in parts[:2])
    k_scale, v_scale = (part.view(torch.float16).view(shape[:2]) for part in parts[2:])
    return k, v, k_scale, v_scale


def float_views(page: Tensor, row: int, kv_heads: int, head_dim: int) -> tuple[Tensor, Tensor]:
    """Views of one layer in one float32 page: K, V [64, Hkv, D]."""
    size = PAGE_TOKENS * kv_heads * head_dim * 4
    begin = row * 2 * size
    k, v = page[begin : begin + 2 * size].view(torch.float32).view(2, PAGE_TOKENS, kv_heads, -1)
    return k, v
