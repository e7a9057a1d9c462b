"""The int8 decoder in pure PyTorch: the truth for the kernels, and what serves without them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backends.local.kernels import reference
from backends.local.kernels.pages import places
from backends.local.layers import RopeTables
from backends.local.quantize import as_float
from backends.local.sampling import draw_rows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from backends.local.kernels.batch import Batch, Drawing
    from backends.local.layers import Layer
    from backends.local.model_config import KVDtype
    from backends.local.quantize import QuantLinear, QuantModel
    from backends.local.sampling import Draw

__all__ = ["Int8Steps"]


class Int8Steps:
    """Implements `Steps` with `backends.local.kernels.reference`.

    Holds the codes as float32, which PyTorch multiplies fastest.
    """

    kv_dtype: KVDtype = "int8"
    device = "cpu"
    row_budget = 1

    def __init__(self, model: QuantModel) -> None:
        self.numerics = model.numerics
        self._model = as_float(model)
        self._ropes = RopeTables(model.config)
        self._places = places(model.config.kv_layout("int8"))

    def run(self, batch: Batch) -> Tensor:
        model, config = self._model, self._model.config
        positions = batch.positions.long()
        ropes = [
            (cos[positions].unsqueeze(1), sin[positions].unsqueeze(1))  # [T, 1, D/2]
            for cos, sin in self._ropes.upto(batch.end)
        ]
        x = reference.embed(
            batch.tokens, model.embedding.codes, model.embedding.scale, model.embed_factor
        )
        for index, layer in enumerate(model.layers):
            h = self._attention(index, layer, x, batch, ropes[self._ropes.of(layer.spec)])
            x = x + self._normed(h, layer.after_attention)
            h = _project(self._normed(x, layer.before_mlp), layer.gate_up)
            h = _project(reference.gate(h, config.activation), layer.down)
            x = x + self._normed(h, layer.after_mlp)
        return _project(self._normed(x[batch.wanted.long()], model.norm), model.head)

    def draw(self, logits: Tensor, draws: Sequence[Draw | None]) -> Drawing:
        tokens = draw_rows(logits.numpy(), draws)
        return lambda: tokens

    def _normed(self, x: Tensor, weight: Tensor | None) -> Tensor:
        if weight is None:
            return x
        return reference.rms_norm(x, weight, self._model.config.rms_eps)

    def _attention(
        self,
        index: int,
        layer: Layer[QuantLinear],
        x: Tensor,
        batch: Batch,
        rope: tuple[Tensor, Tensor],
    ) -> Tensor:
        config, spec = self._model.config, layer.spec
        heads = _project(self._normed(x, layer.before_attention), layer.qkv)
        heads = heads.view(x.shape[0], -1, config.head_dim)  # [T, Hq + 2 Hkv, D]
        rotary = config.q_heads + (config.kv_heads if spec.kv_source is None else 0)
        qk = reference.rope(self._normed(heads[:, :rotary], layer.qk_norm), *rope)
        group, row = self._places[index if spec.kv_source is None else spec.kv_source]
        table = batch.tables[group]
        if spec.kv_source is None:
            k, v = qk[:, config.q_heads :], heads[:, rotary:]
            reference.write_kv(k, v, table, row, batch.starts, batch.lengths)
        out = reference.attend(
            qk[:, : config.q_heads],
            table,
            row,
            config.kv_heads,
            batch.starts,
            batch.lengths,
            spec.window,
            config.attention_scale,
        )
        return _project(out.reshape(x.shape[0], -1), layer.out)


def _project(x: Tensor, linear: QuantLinear) -> Tensor:
    return reference.linear(x, linear.codes, linear.scale, linear.max_code)
