"""The memory that a step's launches share: scratch of their own, and the pages of a layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from backends.local.kernels.pages import PAGE_TOKENS, SPAN_TOKENS

if TYPE_CHECKING:
    from torch import Tensor

    from backends.local.quantize import QuantLinear, QuantModel

__all__ = ["LayerPages", "Residual", "Scratch", "spans_read"]


@dataclass(frozen=True, slots=True)
class LayerPages:
    """Where a layer's keys and values lie, and which of them a decode reads."""

    slots: Tensor  # int32 [B * width]
    first_page: Tensor  # int32 [B]
    codes: Tensor  # int8 [slots, page bytes], the arena
    width: int
    row_bytes: int  # where the layer begins in a page
    window: int  # 0 for global attention
    reads: int  # spans, at most

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """As the kernels take them: page table, first pages, the arena as int8 and as float16."""
        return self.slots, self.first_page, self.codes, self.codes.view(torch.float16)

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Likewise: the table's width, bytes of a page, where the layer begins in it."""
        return self.width, self.codes.shape[1], self.row_bytes


@dataclass(frozen=True, slots=True)
class Residual:
    """A product that is added to the residual stream, and the norm behind the sum."""

    linear: QuantLinear
    splits: int  # partial sums of the product
    after: Tensor | None  # [N], the weight of a norm before the sum
    weight: Tensor  # [N], of the norm behind it
    max_code: int  # of that norm's codes
    ins: Tensor  # float32 [T], scales of the product's rows
    outs: Tensor  # float32 [T], of the codes: written
    last: bool  # only the rows that are looked at go on


@dataclass(slots=True)
class Scratch:
    """What a launch leaves for the next; but for `taken`, never read before it is written."""

    x: Tensor  # float32 [T, hidden]: the residual stream
    digits: Tensor  # int8 [2, T * widest input, and a little more]
    scales: tuple[Tensor, Tensor]  # float32 [T], taken in turns
    sums: Tensor  # int32, a product's partial sums
    q_codes: Tensor  # int8 [T, Hq * D]
    q_scale: Tensor  # float32 [T, Hq]
    attended: Tensor  # float32 [T, Hq * D]
    tops: Tensor  # float32, one a span and head
    totals: Tensor
    outs: Tensor  # float32, D a span and head
    taken: Tensor  # int32 [2], zeros: the count of spans that blocks share while they take them
    logits: Tensor  # float32, W * vocab
    top: Tensor  # float32 [W]
    best: Tensor  # int32 [W]

    @classmethod
    def of(
        cls,
        model: QuantModel,
        device: torch.device,
        tokens: int,
        wanted: int,
        sums: int,
        parts: int,
    ) -> Scratch:
        """Room for `tokens` rows, `wanted` rows of logits, `sums` partial sums of products and
        `parts` spans times query heads of partial attention."""
        config = model.config
        queries = config.q_heads * config.head_dim
        widest = max(config.hidden_size, queries, config.intermediate_size)
        plane = tokens * widest
        plane += -plane % 128  # where copies to shared memory may begin

        def floats(*sizes: int) -> Tensor:
            return torch.zeros(sizes, device=device)

        return cls(
            x=floats(tokens, config.hidden_size),
            digits=torch.zeros((2, plane), dtype=torch.int8, device=device),
            scales=(floats(tokens), floats(tokens)),
            sums=torch.zeros(sums, dtype=torch.int32, device=device),
            q_codes=torch.zeros((tokens, queries), dtype=torch.int8, device=device),
            q_scale=floats(tokens, config.q_heads),
            attended=floats(tokens, queries),
            tops=floats(parts),
            totals=floats(parts),
            outs=floats(parts * config.head_dim),
            taken=torch.zeros(2, dtype=torch.int32, device=device),
            logits=floats(wanted * config.vocab_size),
            top=floats(wanted),
            best=torch.zeros(wanted, dtype=torch.int32, device=device),
        )


def spans_read(window: int | None, width: int) -> int:
    """The most spans that a decode reads in a group of this window and table width."""
    if window is None:
        return -(-width * PAGE_TOKENS // SPAN_TOKENS)
    return -(-window // SPAN_TOKENS) + 1
