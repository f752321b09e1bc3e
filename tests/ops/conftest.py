"""Fixtures that emulate CUDA kernels on the CPU."""

import pytest
import torch
from ops.cuda_emulation import Emulator

from zigma_pl.ops import causal_conv1d_cuda, column_sums, norms_cuda, nvrtc, scale_columns_cuda
from zigma_pl.ops.selective_scan import launch
from zigma_pl.ops.ssd import launch as ssd_launch
from zigma_pl.ops.ssd import terms


@pytest.fixture(scope="session")
def kernel_folder(tmp_path_factory):
    """Folder for the compiled kernels of all tests."""
    return tmp_path_factory.mktemp("emulated_kernels")


@pytest.fixture
def emulated(kernel_folder, monkeypatch):
    """Run all CUDA kernels on the CPU, with NaN in new tensors and shared memory, and one multiprocessor."""
    emulator = Emulator(kernel_folder)
    modules = (causal_conv1d_cuda, column_sums, norms_cuda, scale_columns_cuda)
    caches = (launch.kernel, *(module._kernel for module in (*modules, terms)))
    for module in (launch, *modules):
        monkeypatch.setattr(module, "num_multiprocessors", lambda device: 1)
    monkeypatch.setattr(nvrtc, "load", emulator.load)
    for cache in caches:
        cache.cache_clear()
    torch.use_deterministic_algorithms(True)
    yield emulator
    torch.use_deterministic_algorithms(False)
    for cache in caches:
        cache.cache_clear()


@pytest.fixture
def emulated_ssd(emulated, monkeypatch):
    """Run all CUDA kernels on the CPU, also those of SSD, with one piece per sequence."""
    monkeypatch.setattr(ssd_launch, "shared_bytes", lambda device: 227 * 1024)
    monkeypatch.setattr(ssd_launch, "num_multiprocessors", lambda device: 1)
    ssd_launch.kernel.cache_clear()
    yield emulated
    ssd_launch.kernel.cache_clear()
