"""A step's launches on Hopper: CUDA kernels in place of Triton's where they are faster.

They give the same bits, which a device's trial checks as it does Triton's. Which of the two serves
is decided once a model, by what device and libraries there are, and then by sizes alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog
import torch

from backends.local.gpu.hopper_kernels import Decode, Heads, Products, Rows
from backends.local.gpu.launches import Launches
from backends.local.quantize import NARROW

if TYPE_CHECKING:
    from torch import Tensor

    from backends.local.gpu.scratch import LayerPages, Residual, Scratch
    from backends.local.gpu.shapes import Numbers
    from backends.local.layers import Layer
    from backends.local.quantize import QuantLinear, QuantModel

__all__ = ["HopperLaunches", "launches_for"]

_log = structlog.get_logger()


def launches_for(model: QuantModel, device: torch.device, *, graphs: bool) -> Launches:
    """The launches that serve a model there: on Hopper, where NVRTC is, with CUDA kernels."""
    if device.type != "cuda":
        return Launches(model, packed=False)  # the interpreter has no assembly
    capability = torch.cuda.get_device_capability(device)
    chained = graphs and capability >= (9, 0)  # launches that begin early came with Hopper
    if capability == (9, 0):
        try:
            return HopperLaunches(model, packed=True, chained=chained)
        except (OSError, RuntimeError) as error:
            _log.warning("cuda_kernels_missing", reason=str(error), effect="Triton's serve")
    return Launches(model, packed=True, chained=chained)


class HopperLaunches(Launches):
    """With CUDA kernels for steps of few rows, and for the attention of a decode of any size.

    Raises `OSError` or `RuntimeError` where these cannot be had.
    """

    def __init__(self, model: QuantModel, *, packed: bool, chained: bool = False) -> None:
        super().__init__(model, packed=packed, chained=chained)
        config = model.config
        one = config.kv_heads == 1 and config.head_dim in (128, 256) and config.q_heads <= 16
        self._decode = Decode(config.head_dim, config.q_heads) if one else None
        self._turn = Heads(config) if one and config.head_dim == 128 else None
        self._products = Products(model)
        self._rows = Rows(config)

    def _splits(self, tokens: int, linear: QuantLinear) -> int:
        if self._products.serves(tokens, linear):
            return self._products.splits(linear)
        return super()._splits(tokens, linear)

    def _product(self, s: Scratch, tokens: int, linear: QuantLinear, *, early: bool = False) -> int:
        if self._products.serves(tokens, linear):
            return self._products.sums(
                s.digits, tokens, linear, s.sums, early=early, chained=self._chained
            )
        return super()._product(s, tokens, linear)

    def _gate(
        self, s: Scratch, tokens: int, layer: Layer[QuantLinear], ins: Tensor, outs: Tensor
    ) -> None:
        linear, max_code, chained = layer.gate_up, layer.down.max_code, self._chained
        if not self._products.serves(tokens, linear):
            super()._gate(s, tokens, layer, ins, outs)
            return
        gated = s.sums.view(torch.float32)
        self._products.gated(s.digits, tokens, linear, ins, gated, chained=chained)
        self._rows.quantize_gates(gated, tokens, s.digits, outs, max_code, chained=chained)

    def _residual(self, numbers: Numbers, s: Scratch, r: Residual) -> None:
        shape = numbers.shape
        if shape.tokens > self._products.ROWS or r.max_code != NARROW:
            super()._residual(numbers, s, r)
            return
        self._rows.add_and_norm(
            s.sums,
            r.splits,
            shape.tokens,
            (r.ins, r.linear.scale, r.outs),
            s.x,
            (r.after, r.weight),
            s.digits,
            numbers["wanted"] if r.last else None,
            shape.wanted if r.last else shape.tokens,
            chained=self._chained,
        )

    def _heads(
        self,
        layer: Layer[QuantLinear],
        numbers: Numbers,
        s: Scratch,
        ins: Tensor,
        rope: tuple[Tensor, Tensor],
        kv: LayerPages,
    ) -> None:
        tokens = numbers.shape.tokens
        if self._turn is None or self._splits(tokens, layer.qkv) > self._turn.MOST_SPLITS:
            super()._heads(layer, numbers, s, ins, rope, kv)
            return
        self._turn.split(
            s.sums,
            # Behind these heads attention asks for pages: the sooner, the better.
            self._product(s, tokens, layer.qkv, early=True),
            tokens,
            layer.qkv,
            ins,
            layer.qk_norm,
            rope,
            (numbers["positions"], numbers["owners"]),
            (s.q_codes, s.q_scale),
            kv,
            chained=self._chained,
        )

    def _spans(self, numbers: Numbers, s: Scratch, kv: LayerPages) -> None:
        if self._decode is None:
            super()._spans(numbers, s, kv)
            return
        self._decode.spans(
            (s.q_codes, s.q_scale),
            numbers["starts"],
            numbers["lengths"],
            kv,
            (s.tops, s.totals, s.outs),
            s.taken,
            chained=self._chained,
        )

    def _merge(
        self, numbers: Numbers, s: Scratch, kv: LayerPages, outs: Tensor, max_code: int
    ) -> None:
        if self._decode is None or numbers.shape.tiles or max_code != NARROW:
            super()._merge(numbers, s, kv, outs, max_code)
            return
        self._decode.merge(
            (s.tops, s.totals, s.outs),
            numbers["starts"],
            numbers["lengths"],
            kv,
            s.digits,
            outs,
            chained=self._chained,
        )
