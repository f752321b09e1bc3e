"""Run-time compilation: reasons why it is not available, and the cache on disk."""

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
        cuLaunchKernel = cuModuleGetFunction = staticmethod(lambda *_: 0)

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


def test_a_launch_that_the_driver_refuses_is_explained(monkeypatch):
    class Driver:
        cuLaunchKernel = staticmethod(lambda *_: 1)

    monkeypatch.setattr(nvrtc, "_driver", Driver)
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda _: 0, raising=False)
    kernel = nvrtc.Kernel(None, None, threads=32, shared_bytes=0, num_fields=1, device=0)
    with pytest.raises(UserError, match=r"66000 sequences .* smaller batch"):
        kernel((1, 66_000, 1), [0])
    with pytest.raises(RuntimeError, match="cuLaunchKernel failed with CUDA error 1"):
        kernel((70_000, 1, 1), [0])
