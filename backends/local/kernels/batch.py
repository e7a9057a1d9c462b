"""One step of a decoder as tensors: what the pure PyTorch path and the C++ path both read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from backends.local.kernels.pages import GroupTable
    from backends.local.model_config import KVDtype
    from backends.local.sampling import Draw

    Drawing = Callable[[], list[int | None]]
    """Waits for the tokens of `sampling.draw_rows` and gives them; called before the next step."""

__all__ = ["Batch", "Steps"]


@dataclass(frozen=True, slots=True)
class Batch:
    """The next tokens of B sequences, laid end to end; all but the tables are int32.

    `tokens`, `positions`: [T]. `starts`: [B + 1], sequence b has rows [starts[b], starts[b + 1]).
    `lengths`: [B], KV tokens of each with the new ones. `wanted`: [W], rows that need logits.
    `tables`: by group id. `end`: the largest length. `largest_only`: whether logits are looked at
    for a row's largest alone.
    """

    tokens: Tensor
    positions: Tensor
    starts: Tensor
    lengths: Tensor
    wanted: Tensor
    tables: tuple[GroupTable, ...]
    end: int
    largest_only: bool = False


class Steps(Protocol):
    """One way to run a model's steps.

    `kv_dtype` is what it keeps in the pages, which lie on `device` ("cpu" or "cuda"); `numerics`
    names its arithmetic: two ways of one name give the same bits. `row_budget` is how many rows a
    step computes in little more than the time of one.
    """

    kv_dtype: KVDtype
    numerics: str
    device: str
    row_budget: int

    def run(self, batch: Batch) -> Tensor:
        """Writes the new tokens' KV into the pages; returns float32 logits [W, vocab].

        Where `batch.largest_only`, any that are not the largest of their row may be -inf.
        """
        ...

    def draw(self, logits: Tensor, draws: Sequence[Draw | None]) -> Drawing:
        """Begins to draw from what `run` returned, unchanged; it is used up."""
        ...
