"""Int8 steps that answer at once and grow fast: PyTorch until the kernels are compiled."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import structlog
import torch

from backends.local.int8 import Int8Steps
from backends.local.kernels.steps import CpuSteps

if TYPE_CHECKING:
    from collections.abc import Sequence
    from concurrent.futures import Future

    from torch import Tensor

    from backends.local.kernels.batch import Batch, Drawing, Steps
    from backends.local.kernels.cpu import CpuKernels
    from backends.local.model_config import KVDtype
    from backends.local.quantize import QuantModel
    from backends.local.sampling import Draw

__all__ = ["WarmingSteps"]

_log = structlog.get_logger()


class WarmingSteps:
    """Implements `Steps` with `Int8Steps`, then with `CpuSteps` once `compiled` gives kernels.

    Both give the same bits, so nobody notices but by the speed. The weights are packed for the
    kernels on a thread of its own; the step after that is theirs. Where `compiled` gives None or
    fails, PyTorch goes on.
    """

    kv_dtype: KVDtype = "int8"
    device = "cpu"
    row_budget = 1

    def __init__(self, model: QuantModel, compiled: Future[CpuKernels | None]) -> None:
        self.numerics = model.numerics
        self._steps: Steps = Int8Steps(model)
        self._packing = threading.Thread(
            target=self._pack, args=(model, compiled), name="pack-weights", daemon=True
        )
        self._packing.start()

    def run(self, batch: Batch) -> Tensor:
        return self._steps.run(batch)

    def draw(self, logits: Tensor, draws: Sequence[Draw | None]) -> Drawing:
        return self._steps.draw(logits, draws)

    @property
    def warm(self) -> bool:
        """Whether the kernels compute."""
        return isinstance(self._steps, CpuSteps)

    @torch.inference_mode()
    def _pack(self, model: QuantModel, compiled: Future[CpuKernels | None]) -> None:
        try:
            kernels = compiled.result()
            if kernels is None or not kernels.supports(model.config):
                return
            # A step that runs meanwhile ends as it began.
            steps = CpuSteps(model, kernels)
            self._steps, self.row_budget = steps, steps.row_budget
        except Exception:
            _log.exception("kernels_missing", effect="slow replies")
            return
        _log.info("kernels_ready")
