"""Every build of the C++ kernels, made once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from backends.local.kernels import cpu

if TYPE_CHECKING:
    from backends.local.kernels.cpu import CpuKernels


@pytest.fixture(params=["avx512", "avx2"], scope="session")
def each_kernels(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> CpuKernels:
    """Every build that this machine can run."""
    if request.param not in cpu.variants():
        pytest.skip(f"this machine cannot run the {request.param} build")
    built = cpu.build(tmp_path_factory.mktemp("kernels"), request.param)
    assert built is not None
    return built
