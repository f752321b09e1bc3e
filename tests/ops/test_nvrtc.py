"""Run-time compilation: reasons why it is not available, and the cache on disk."""

import ctypes
import re
from pathlib import Path

import pytest
import torch

from zigma_pl.core.errors import UserError
from zigma_pl.ops import nvrtc


def test_what_is_missing_is_named(monkeypatch):
    nvrtc._module.cache_clear()  # with a kernel loaded, nothing is missing
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert nvrtc.available() == (False, "PyTorch sees no CUDA device")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (7, 5))
    available, reason = nvrtc.available()
    assert not available
    assert "8.0" in reason
    assert "7.5" in reason

    def missing():
        raise OSError("libnvrtc.so: cannot open shared object file")

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (8, 0))
    monkeypatch.setattr(nvrtc, "_nvrtc", missing)
    available, reason = nvrtc.available()
    assert not available
    assert "pip install nvidia-cuda-nvrtc" in reason


@pytest.fixture
def compiled(monkeypatch, tmp_path):
    """Recorded calls of a fake compiler, with the cache in a temporary folder."""
    calls = []

    def compile_source(source, flags):
        calls.append((source, flags))
        return source.encode()[::-1]

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(nvrtc, "_compile", compile_source)
    monkeypatch.setattr(nvrtc, "_nvrtc_version", lambda: (13, 0))
    return calls


def test_each_source_option_architecture_and_compiler_is_compiled_once(compiled, monkeypatch, tmp_path):
    for _ in range(2):
        assert nvrtc.compile_cached("abc", (("SIZE", 3),), "sm_90") == b"cba"
    assert compiled == [("abc", ["--std=c++17", "--gpu-architecture=sm_90", "-DSIZE=3"])]
    nvrtc.compile_cached("abcd", (("SIZE", 3),), "sm_90")
    nvrtc.compile_cached("abc", (("SIZE", 4),), "sm_90")
    nvrtc.compile_cached("abc", (("SIZE", 3),), "sm_80")
    monkeypatch.setattr(nvrtc, "_nvrtc_version", lambda: (13, 1))
    nvrtc.compile_cached("abc", (("SIZE", 3),), "sm_90")
    assert len(compiled) == 5
    files = list((tmp_path / "zigma_pl").iterdir())
    assert len(files) == 5
    assert {file.suffix for file in files} == {".cubin"}


def test_an_interrupted_write_leaves_nothing_that_is_read(compiled, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr(nvrtc.os, "replace", interrupt)
        with pytest.raises(KeyboardInterrupt):
            nvrtc.compile_cached("abc", (), "sm_90")
    assert nvrtc.compile_cached("abc", (), "sm_90") == b"cba"
    assert len(compiled) == 2


@pytest.fixture
def attributes(monkeypatch):
    """Attributes of the only kernel of a fake driver, by CUfunction_attribute."""
    attributes = {8: 49_152, 9: -1}

    class Driver:
        cuLaunchKernelEx = cuModuleGetFunction = staticmethod(lambda *_: 0)

        @staticmethod
        def cuFuncGetAttribute(result, attribute, function):
            result._obj.value = attributes[attribute]
            return 0

        @staticmethod
        def cuFuncSetAttribute(function, attribute, value):
            attributes[attribute] = value
            return 0

    monkeypatch.setattr(nvrtc, "_driver", Driver)
    monkeypatch.setattr(nvrtc, "_module", lambda *_: None)
    monkeypatch.setattr(nvrtc, "_supports_early", lambda _: True)
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda _: 0, raising=False)
    return attributes


def load(shared_bytes, **given):
    nvrtc.load((), "kernel", (), threads=32, shared_bytes=shared_bytes, num_fields=1, device=0, **given)


def test_a_kernel_is_loaded_with_its_shared_memory_and_carveout(attributes):
    for given, carveout in (({}, 100), ({"carveout": 30}, 30)):
        load(64_000, **given)
        assert attributes == {8: 64_000, 9: carveout}


def test_a_kernel_loaded_again_with_less_shared_memory_keeps_its_limit(attributes):
    for shared_bytes, limit in ((100_000, 100_000), (60_000, 100_000), (120_000, 120_000)):
        load(shared_bytes)
        assert attributes[8] == limit


class LaunchConfig(ctypes.Structure):
    """CUlaunchConfig of cuda.h."""

    _fields_ = [
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared_bytes", ctypes.c_uint),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.c_void_p),
        ("num_attributes", ctypes.c_uint),
    ]


def launched_with(monkeypatch, capability, version, error=0):
    """Return a kernel of a fake driver that returns an error, and the configs of its launches."""
    configs = []

    class Driver:
        @staticmethod
        def cuLaunchKernelEx(config, *_):
            assert len(config) == ctypes.sizeof(LaunchConfig)
            configs.append(LaunchConfig.from_buffer_copy(config))
            return error

        @staticmethod
        def cuDriverGetVersion(result):
            result._obj.value = version
            return 0

    monkeypatch.setattr(nvrtc, "_driver", Driver)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda _: 2**40, raising=False)
    nvrtc._supports_early.cache_clear()
    kernel = nvrtc.Kernel(None, None, threads=64, shared_bytes=1000, num_fields=1, device=0)
    nvrtc._supports_early.cache_clear()
    return kernel, configs


@pytest.mark.parametrize(
    ("capability", "version", "early"), [((9, 0), 12_030, True), ((8, 9), 13_000, False), ((9, 0), 12_020, False)]
)
def test_blocks_are_launched_early_on_request_where_graphs_support_it(monkeypatch, capability, version, early):
    kernel, configs = launched_with(monkeypatch, capability, version)
    kernel((5, 6, 7), [0])
    with nvrtc.early_launches():
        kernel((5, 6, 7), [0])
    kernel((5, 6, 7), [0])
    assert [config.num_attributes for config in configs] == [0, early, 0]
    config = configs[1]
    assert (*config.grid, *config.block, config.shared_bytes, config.stream) == (5, 6, 7, 64, 1, 1, 1000, 2**40)
    if early:
        attribute, _, value = (ctypes.c_int * 3).from_address(config.attributes)
        assert (attribute, value) == (6, 1)


def test_every_kernel_waits_for_the_previous_one():
    sources = "".join(path.read_text() for path in Path(nvrtc.__file__).parent.rglob("*.cu"))
    kernels = re.findall(r'^extern "C" __global__ .*? (\w+)\(const Params p\) \{\n(.*?)^\}', sources, re.M | re.S)
    assert len(kernels) == sources.count('extern "C"') > 0
    assert not [name for name, body in kernels if "await_previous_kernel();" not in body]


def test_a_launch_that_the_driver_refuses_is_explained(monkeypatch):
    kernel, _ = launched_with(monkeypatch, (9, 0), 13_000, error=1)
    with pytest.raises(UserError, match=r"66000 sequences .* smaller batch"):
        kernel((1, 66_000, 1), [0])
    with pytest.raises(RuntimeError, match="cuLaunchKernelEx failed with CUDA error 1"):
        kernel((70_000, 1, 1), [0])
