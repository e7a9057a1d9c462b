"""What the engine process is told at its start: one frozen value, read by the worker alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["EngineSettings"]


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """Settings of one engine process.

    `model` is the name of a packaged model, the path of a Hugging Face folder, or `synthetic:NAME`
    for random weights of a shape (`backends.local.synthetic`). Converted weights, the KV files and
    the KV secret live under `data_dir`. `device` is `auto` (a CUDA device where there is one),
    `cpu` or `cuda`. `threads` 0 uses every core.
    `context` caps the model's own context length, in tokens. `step_tokens` is the budget of one
    scheduling step: decodes first, the rest for chunks of prefill. A turn that waited
    `max_wait_seconds` for its first step is refused. `draft_tokens` bounds the guesses that a
    step verifies where the machine has rows to spare. `store` is `tiered` or `none`.
    `device_bytes` is the pool of KV pages that attention reads; `host_bytes` and `disk_bytes`
    bound what lies behind it, `tenant_bytes` what one tenant may have of host memory (0: all).
    `remote_url` is a Redis or Valkey server shared with other engines, or empty.
    """

    data_dir: Path
    model: str = "gemma-3-270m"
    device: str = "auto"
    threads: int = 0
    context: int = 4096
    max_running: int = 8
    max_queued: int = 64
    max_wait_seconds: int = 60
    step_tokens: int = 256
    draft_tokens: int = 3
    store: str = "tiered"
    device_bytes: int = 512 << 20
    host_bytes: int = 1 << 30
    disk_bytes: int = 4 << 30
    tenant_bytes: int = 0
    remote_url: str = ""
    remote_deadline_ms: int = 250
    remote_ttl_seconds: int = 7 * 86400
