"""From settings to an engine that can run: weights, tenants' spaces, store."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from backends.api import Capabilities
from backends.local.checkpoint import load
from backends.local.engine import Engine
from backends.local.kernels.cpu import kernel_cache, start_build
from backends.local.made_up import made_up, synthetic_name
from backends.local.packaged import prepare
from backends.local.paged import pages_needed
from backends.local.prefix import Prefixes
from backends.local.scheduler import Limits
from backends.local.secret import kv_secret, tenant_salt
from kvstore.api import Space
from kvstore.device import DeviceTier, slot_counts
from kvstore.disk import DiskTier
from kvstore.host import HostTier
from kvstore.null import NullStore
from kvstore.policy import Policy
from kvstore.remote import RemoteTier
from kvstore.tiered import TieredStore

if TYPE_CHECKING:
    from concurrent.futures import Future

    from backends.local.checkpoint import LoadedModel
    from backends.local.kernels.cpu import CpuKernels
    from backends.local.model import DeviceChoice
    from backends.local.progress import Progress
    from backends.local.settings import EngineSettings
    from backends.local.template import Template
    from kvstore.api import Layout, PrefixStore, Tier

__all__ = ["Assembled", "assemble"]


@dataclass(frozen=True, slots=True)
class Assembled:
    """An engine that is ready to `run`, and what it says of itself."""

    engine: Engine
    template: Template
    capabilities: Capabilities
    layout: Layout
    device: DeviceTier


def assemble(settings: EngineSettings, progress: Progress) -> Assembled:
    """Prepares and loads the model and opens the store; takes seconds, the first time a minute.

    Sets torch's thread count. Raises `ModelError`, `StoreError`, `ValueError` (settings that
    contradict each other) or `OSError` (data folder), each with one line for people.
    """
    limits = Limits(
        settings.max_running, settings.max_queued, settings.step_tokens, settings.max_wait_seconds
    )
    if settings.context < 2:
        raise ValueError(f"context must be at least 2: {settings.context}")
    torch.set_num_threads(settings.threads or len(os.sched_getaffinity(0)))
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    # The first start compiles them, which takes seconds; until then PyTorch does the same.
    kernels = start_build(kernel_cache())
    model = _load(settings, kernels, progress)
    _ = model.tokenizer.blank_ids  # a scan of the vocabulary that the first turn need not wait for
    layout = model.config.kv_layout(model.decoder.kv_dtype)
    spaces = _Spaces(settings, model, layout)
    slots = slot_counts(layout, settings.device_bytes)
    device = DeviceTier(layout, slots, device=model.decoder.device)
    policy = Policy()
    store = _open_store(settings, layout, device, policy)
    prefixes = Prefixes(store, device, spaces.of_tenant, policy)
    context = min(settings.context, model.config.max_context)
    for group in layout.groups:
        pages = pages_needed(group, context, settings.step_tokens, layout.block_tokens)
        if device.size(group.id) < pages + 1:
            raise ValueError(
                f"device_bytes ({settings.device_bytes}) is too small for one chat of {context} "
                "tokens; raise it or lower context"
            )
    model.decoder.prepare(device, limits.max_running, limits.step_tokens, context)
    engine = Engine(
        model.decoder,
        model.tokenizer,
        model.template,
        prefixes,
        device,
        limits=limits,
        context=context,
        draft_tokens=settings.draft_tokens,
    )
    progress("Loading the model", 1, 1)
    capabilities = Capabilities(
        model=settings.model,
        context=context,
        notice=model.notice,
        sampling=model.profile.sampling,
    )
    return Assembled(engine, model.template, capabilities, layout, device)


def _load(
    settings: EngineSettings, kernels: Future[CpuKernels | None], progress: Progress
) -> LoadedModel:
    device, context = _device(settings.device), settings.context
    name = synthetic_name(settings.model)
    if name is not None:
        progress("Loading the model", 0, 1)
        return made_up(name, kernels=kernels, device=device, context=context)
    folder = prepare(settings.model, settings.data_dir, progress)
    progress("Loading the model", 0, 1)
    return load(folder, kernels=kernels, device=device, context=context)


def _device(name: str) -> DeviceChoice:
    match name:
        case "auto" | "cpu" | "cuda":
            return name
        case other:
            raise ValueError(f"device must be 'auto', 'cpu' or 'cuda', not {other!r}")


class _Spaces:
    """The KV space of each tenant, for one model."""

    def __init__(self, settings: EngineSettings, model: LoadedModel, layout: Layout) -> None:
        self._secret = kv_secret(settings.data_dir)
        # The shape, RoPE bases and norms are no part of the weights file but change the KV.
        self._model = hashlib.sha256(repr(model.config).encode()).hexdigest()
        self._weights = f"{model.fingerprint}/{model.decoder.numerics}"
        self._kv_dtype = model.decoder.kv_dtype
        self._tokenizer = model.tokenizer.digest
        self._layout = ";".join(
            [f"block={layout.block_tokens}", *(f"{g.layers}/{g.window}" for g in layout.groups)]
        )

    def of_tenant(self, tenant: str) -> Space:
        return Space(
            model=self._model,
            weights=self._weights,
            tokenizer=self._tokenizer,
            kv_layout=self._layout,
            kv_dtype=self._kv_dtype,
            tenant_salt=tenant_salt(self._secret, tenant),
        )


def _open_store(
    settings: EngineSettings, layout: Layout, device: DeviceTier, policy: Policy
) -> PrefixStore:
    match settings.store:
        case "tiered":
            host = HostTier(settings.host_bytes, tenant_bytes=settings.tenant_bytes)
            slower: list[Tier] = []
            if settings.remote_url:
                remote = RemoteTier(
                    settings.remote_url,
                    deadline=settings.remote_deadline_ms / 1e3,
                    ttl_seconds=settings.remote_ttl_seconds,
                )
                slower.append(remote)
            slower.insert(0, DiskTier(settings.data_dir / "kv", settings.disk_bytes))
            return TieredStore(layout, device, host, slower, policy=policy)
        case "none":
            return NullStore()
        case other:
            raise ValueError(f"store must be 'tiered' or 'none', not {other!r}")
