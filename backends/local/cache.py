"""The KV of one sequence while it is being worked on.

One tensor a layer group, `[layer, k|v, token, kv_head, dim]`: a run of tokens is exported to and
restored from `kvstore.api.Block` payloads by one copy, and a layer's K or V is a view of it.
Sliding groups keep the tail that attention and the next stored block can still ask for, and shift
it to the front when the tensor is full, so their memory does not grow with the context.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from backends.local.model_config import ModelConfig
    from kvstore.api import Block, Group, Layout

__all__ = ["SequenceKV"]

_STEP = 256
"""Tokens by which a tensor grows at the least; slack that a sliding group shifts once for."""


class _GroupKV:
    """Rows of one group: `data[:, :, i]` is token `start + i`."""

    def __init__(self, group: Group, config: ModelConfig, dtype: torch.dtype, slack: int) -> None:
        self.window = group.window
        self.keep = None if group.window is None else group.window + slack
        self.start = 0
        self.data = torch.empty(
            (len(group.layers), 2, 0, config.kv_heads, config.head_dim), dtype=dtype
        )

    def reserve(self, length: int, more: int) -> None:
        """Makes room for tokens [length, length + more), forgetting what is out of reach."""
        held, capacity = length - self.start, self.data.shape[2]
        if held + more <= capacity:
            return
        first = self.start if self.keep is None else max(self.start, length - self.keep)
        tail = self.data[:, :, first - self.start : held]
        needed = length - first + more
        if needed <= capacity:
            tail = tail.clone()  # source and target overlap
        else:
            grown = max(needed, capacity * 3 // 2) if self.keep is None else needed
            shape = list(self.data.shape)
            shape[2] = -(-grown // _STEP) * _STEP
            self.data = torch.empty(shape, dtype=self.data.dtype)
        self.data[:, :, : length - first] = tail
        self.start = first


class SequenceKV:
    """K and V of one sequence, empty at first; `length` tokens are in it.

    After `n` tokens were added, each sliding group still holds at least the `window + block_tokens`
    tokens before the first of them, so every prefix that ends in those `n` tokens can be exported.
    Not thread-safe.
    """

    def __init__(
        self, config: ModelConfig, dtype: torch.dtype = torch.float32, block_tokens: int = 64
    ) -> None:
        self.config = config
        self.dtype = dtype
        self.length = 0
        layout = config.kv_layout(block_tokens, dtype.itemsize)
        self._groups = [_GroupKV(group, config, dtype, block_tokens) for group in layout.groups]
        self._of_layer = {
            layer: (self._groups[group.id], row)
            for group in layout.groups
            for row, layer in enumerate(group.layers)
        }

    @property
    def nbytes(self) -> int:
        """Bytes of memory held, reserved rows included."""
        return sum(group.data.nbytes for group in self._groups)

    def first_held(self, group: Group) -> int:
        """The first token of `group` that is still here."""
        return self._groups[group.id].start

    def reserve(self, tokens: int) -> None:
        """Makes room for `tokens` more; may forget tokens that no layer can read again."""
        for group in self._groups:
            group.reserve(self.length, tokens)

    def write(self, layer: int, k: Tensor, v: Tensor) -> None:
        """Puts the K and V ([T, Hkv, D]) of the next T tokens of an owning layer.

        The room was made by `reserve`; `advance` makes them count once every layer has written.
        """
        group, row = self._of_layer[layer]
        at = self.length - group.start
        group.data[row, 0, at : at + k.shape[0]] = k
        group.data[row, 1, at : at + v.shape[0]] = v

    def read(self, layer: int, start: int, end: int) -> tuple[Tensor, Tensor]:
        """Views [S, Hkv, D] of an owning layer's K and V of tokens [start, end)."""
        group, row = self._of_layer[layer]
        k, v = group.data[row, :, start - group.start : end - group.start].unbind(0)
        return k, v

    def advance(self, tokens: int) -> None:
        """Counts `tokens` that every owning layer has written."""
        self.length += tokens

    @torch.inference_mode()
    def export(self, group: Group, start: int, end: int) -> bytes:
        """The payload of tokens [start, end) of `group`, as `kvstore.api.Block` wants it.

        Raises `ValueError` when not all of these tokens are held.
        """
        held = self._groups[group.id]
        if not held.start <= start < end <= self.length:
            raise ValueError(
                f"tokens [{start}, {end}) asked of group {group.id}, "
                f"which holds [{held.start}, {self.length})"
            )
        run = held.data[:, :, start - held.start : end - held.start].contiguous()
        return run.view(torch.uint8).numpy().tobytes()

    @torch.inference_mode()
    def restore(self, layout: Layout, blocks: Sequence[Block], length: int) -> None:
        """Fills this empty cache, bit for bit, with the prefix of `length` tokens in `blocks`.

        The blocks of a group are in token order, without a gap, and end at `length`. Raises
        `ValueError` when they do not make that prefix; the cache is then still empty.
        """
        if self.length:
            raise ValueError("only an empty cache can be restored")
        runs = [[b for b in blocks if b.key.group == group.id] for group in layout.groups]
        for group, run in zip(layout.groups, runs, strict=True):
            _check_run(group, run, layout.first_needed(group, length), length)
        for group, run in zip(layout.groups, runs, strict=True):
            held = self._groups[group.id]
            held.start = first = run[0].key.start if run else 0
            held.reserve(first, length - first)
            target = held.data.view(torch.uint8).numpy()
            for block in run:
                rows = slice(block.key.start - first, block.key.prefix.length - first)
                shape = (*target.shape[:2], block.key.tokens, *target.shape[3:])
                target[:, :, rows] = np.frombuffer(block.payload, np.uint8).reshape(shape)
        self.length = length


def _check_run(group: Group, run: Sequence[Block], first_needed: int, length: int) -> None:
    at = run[0].key.start if run else 0
    if at > first_needed:
        raise ValueError(f"group {group.id} starts at token {at}, not at {first_needed}")
    for block in run:
        if block.key.start != at:
            raise ValueError(f"group {group.id} has a gap at token {at}")
        if len(block.payload) != block.key.tokens * group.bytes_per_token:
            raise ValueError(f"group {group.id}: payload of {len(block.payload)} bytes at {at}")
        at = block.key.prefix.length
    if at != length:
        raise ValueError(f"group {group.id} ends at token {at}, not at {length}")
