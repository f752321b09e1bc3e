"""CUDA C++ compiled at run time: compilation by NVRTC, a cache of binaries on disk, and launches with low overhead.

NVRTC comes with PyTorch's CUDA builds, so that users need neither nvcc nor a build step. A kernel takes one struct by
value, with fields of 8 bytes each, and runs on PyTorch's current stream, also during CUDA graph capture.
"""

import ctypes
import functools
import hashlib
import importlib.util
import os
import struct
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch

from zigma_pl.core.errors import UserError
from zigma_pl.core.files import cache_folder

ROW_KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}  # of rows in the kernels, see device.cu
MIN_COMPUTE_CAPABILITY = (8, 0)  # asynchronous copies, bfloat16 conversion and tf32 matrix products

READY = "CUDA C++ compiled at run time"

_CUDA_ERROR_INVALID_CONTEXT = 201
LARGEST_GRID = 65_535  # maximum number of blocks along the second and third axis of the grid, on all GPUs
# Early launches: compute capability, and CUDA version of the driver, from which CUDA graphs support them.
_EARLY_CAPABILITY, _EARLY_VERSION = (9, 0), 12_030
# CUlaunchAttribute with CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION = 1
_EARLY = ctypes.create_string_buffer(struct.pack("i4xi60x", 6, 1))
_pack_config = struct.Struct("7I4xPPI4x").pack  # CUlaunchConfig
_MAX_DYNAMIC_SHARED_SIZE, _PREFERRED_SHARED_MEMORY_CARVEOUT = 8, 9  # CUfunction_attribute


def available() -> tuple[bool, str]:
    """Return whether kernels can be compiled and run here, with the reason if not."""
    if _module.cache_info().currsize:  # a kernel was loaded before; the checks below take longer than a launch
        return True, READY
    if not torch.cuda.is_available():
        return False, "PyTorch sees no CUDA device"
    capability = torch.cuda.get_device_capability()
    if capability < MIN_COMPUTE_CAPABILITY:
        needed = ".".join(map(str, MIN_COMPUTE_CAPABILITY))
        return False, f"needs compute capability {needed}, this GPU has {'.'.join(map(str, capability))}"
    try:
        _nvrtc()
        _driver()
    except OSError as error:
        return False, f"NVRTC cannot be loaded ({error}); pip install nvidia-cuda-nvrtc"
    return True, READY


# torch.compile cannot trace the checks of the driver, whose result depends only on the machine.
@torch.compiler.assume_constant_result
def is_available() -> bool:
    """Return whether kernels can be compiled and run here, also in code that torch.compile traces."""
    return available()[0]


def runs_eagerly(tensor: torch.Tensor) -> bool:
    """Return whether a kernel can be launched directly: not in torch.compile, and not for tensors without data.

    Those cases need a custom op, whose dispatch takes about as long on the host as the launch.
    """
    return type(tensor) is torch.Tensor and not torch.compiler.is_compiling()


class Kernel:
    """A kernel on one device.

    Its blocks call `await_previous_kernel` of device.cu first, since they may start early (`early_launches`).

    Args:
        module, function: handles from the driver.
        threads: threads in a block.
        shared_bytes: dynamic shared memory of a block.
        num_fields: fields of the kernel's struct.
        device: index of the CUDA device.
    """

    def __init__(
        self,
        module: ctypes.c_void_p,
        function: ctypes.c_void_p,
        threads: int,
        shared_bytes: int,
        num_fields: int,
        device: int,
    ) -> None:
        self._module, self._function = module, function  # the module lives as long as the process
        self._block = (threads, 1, 1, shared_bytes)
        self._pack = struct.Struct(f"{num_fields}q").pack
        self._device = device
        self._attributes = (ctypes.addressof(_EARLY), 1) if _supports_early(device) else (0, 0)
        self._launch = _driver().cuLaunchKernelEx
        # As torch.cuda.current_stream, but without creating a Stream object, which takes longer than a launch.
        self._current_stream = torch._C._cuda_getCurrentRawStream

    def __call__(self, grid: tuple[int, int, int], fields: Sequence[int]) -> None:
        """Launch a grid of blocks with the fields of the struct: integers, or addresses of device memory.

        Raises:
            UserError: there are more sequences, along the second or third axis of the grid, than a GPU supports.
        """
        arguments = _Arguments(self._pack(*fields))  # address of the struct, which is copied at launch
        stream = self._current_stream(self._device)
        attributes = self._attributes if _is_early.get() else (0, 0)
        config = _pack_config(*grid, *self._block, stream, *attributes)
        error = self._launch(config, self._function, arguments, None)
        if error == _CUDA_ERROR_INVALID_CONTEXT:  # the first CUDA call in this thread, such as an autograd thread
            _make_context_current(self._device)
            error = self._launch(config, self._function, arguments, None)
        if error and max(grid[1:]) > LARGEST_GRID:
            raise UserError(
                f"{max(grid[1:])} sequences are more than the {LARGEST_GRID} that a kernel on a GPU supports: use a "
                "smaller batch (time layers have one sequence for each grid position of each clip)"
            )
        if error:
            _check(error, "cuLaunchKernelEx")


_Arguments = ctypes.c_char_p * 1
_is_early: ContextVar[bool] = ContextVar("is_early", default=False)


@contextmanager
def early_launches() -> Iterator[None]:
    """Launch the kernels in the block while the previous kernel of the stream is still running, if the GPU supports it.

    This is CUDA's programmatic dependent launch. It shortens sequences of short kernels, as in sampling small batches,
    but not training steps.
    """
    token = _is_early.set(True)
    try:
        yield
    finally:
        _is_early.reset(token)


def load(
    sources: tuple[Path, ...],
    name: str,
    options: tuple[tuple[str, int], ...],
    *,
    threads: int,
    shared_bytes: int,
    num_fields: int,
    device: int,
    carveout: int = 100,
) -> Kernel:
    """Compile a kernel, or read it from the cache on disk, and load it on a device.

    Args:
        sources: files that form one translation unit.
        name: name of the kernel, which must be declared extern "C".
        options: macros and their values.
        threads, shared_bytes, num_fields, device: see `Kernel`.
        carveout: preferred percentage of the L1 cache to use as shared memory, 0 to 100; the rest caches reads.
    """
    module = _module(sources, options, device)
    function = ctypes.c_void_p()
    _check(_driver().cuModuleGetFunction(ctypes.byref(function), module, name.encode()), "cuModuleGetFunction")
    limit = ctypes.c_int()  # of the function, which may have been loaded before with more shared memory
    got = _driver().cuFuncGetAttribute(ctypes.byref(limit), _MAX_DYNAMIC_SHARED_SIZE, function)
    _check(got, "cuFuncGetAttribute")
    most = max(limit.value, shared_bytes)
    for attribute, value in ((_MAX_DYNAMIC_SHARED_SIZE, most), (_PREFERRED_SHARED_MEMORY_CARVEOUT, carveout)):
        _check(_driver().cuFuncSetAttribute(function, attribute, value), "cuFuncSetAttribute")
    return Kernel(module, function, threads, shared_bytes, num_fields, device)


@functools.cache
def _module(sources: tuple[Path, ...], options: tuple[tuple[str, int], ...], device: int) -> ctypes.c_void_p:
    major, minor = torch.cuda.get_device_capability(device)
    binary = compile_cached("\n".join(path.read_text() for path in sources), options, f"sm_{major}{minor}")
    _make_context_current(device)
    module = ctypes.c_void_p()
    _check(_driver().cuModuleLoadData(ctypes.byref(module), binary), "cuModuleLoadData")
    return module


def compile_cached(source: str, options: tuple[tuple[str, int], ...], architecture: str) -> bytes:
    """Return machine code for an architecture such as "sm_90", from the cache if possible."""
    flags = ["--std=c++17", f"--gpu-architecture={architecture}", *(f"-D{macro}={value}" for macro, value in options)]
    key = hashlib.sha256("\0".join([source, *flags, *map(str, _nvrtc_version())]).encode()).hexdigest()
    path = cache_folder() / f"{key[:32]}.cubin"
    if path.is_file():
        return path.read_bytes()
    binary = _compile(source, flags)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as part:
        part.write(binary)
    os.replace(part.name, path)  # atomic, so that other processes never read a partial file
    return binary


def _compile(source: str, flags: list[str]) -> bytes:
    library, program = _nvrtc(), ctypes.c_void_p()
    created = library.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"zigma_pl.cu", 0, None, None)
    _check(created, "nvrtcCreateProgram")
    try:
        array = (ctypes.c_char_p * len(flags))(*(flag.encode() for flag in flags))
        error = library.nvrtcCompileProgram(program, len(flags), array)
        if error:
            log = _sized(library.nvrtcGetProgramLogSize, library.nvrtcGetProgramLog, program).decode()
            raise RuntimeError(f"NVRTC failed with error {error} ({' '.join(flags)}):\n{log}")
        return _sized(library.nvrtcGetCUBINSize, library.nvrtcGetCUBIN, program)
    finally:
        library.nvrtcDestroyProgram(ctypes.byref(program))


def as_parameter(parameter: torch.Tensor | None) -> Any:
    """Return a parameter as contiguous float32; None stays None."""
    if parameter is None or (parameter.dtype is torch.float32 and parameter.is_contiguous()):
        return parameter  # .to() would call the dispatcher twice for the same result
    return parameter.to(torch.float32).contiguous()


def as_order(visit_order: torch.Tensor | None) -> torch.Tensor | None:
    """Return a visit order as contiguous int32; None stays None."""
    if visit_order is None or (visit_order.dtype is torch.int32 and visit_order.is_contiguous()):
        return visit_order
    return visit_order.to(torch.int32).contiguous()


@functools.cache
def shared_bytes(device: int) -> int:
    """Return the shared memory that a block can have at least on a CUDA device."""
    capability = torch.cuda.get_device_capability(device)
    small = capability in ((8, 6), (8, 9)) or capability >= (12, 0)
    return (99 if small else 163) * 1024


@functools.cache
def num_multiprocessors(device: int) -> int:
    """Return the number of multiprocessors of a CUDA device."""
    return torch.cuda.get_device_properties(device).multi_processor_count


def rows_of_block(num_rows: int, room: int, multiple: int, longest: int) -> int:
    """Return the number of rows per block: as small as possible without more blocks than can run at the same time.

    Args:
        num_rows: number of rows in total.
        room: number of blocks that the GPU can run at the same time.
        multiple: the result is a multiple of this.
        longest: maximum number of rows per block, which takes precedence over `room`.
    """
    return min(longest, -(-num_rows // (room * multiple)) * multiple)


def _sized(get_size: Callable[..., int], get: Callable[..., int], program: ctypes.c_void_p) -> bytes:
    size = ctypes.c_size_t()
    _check(get_size(program, ctypes.byref(size)), "the size of NVRTC's output")
    buffer = ctypes.create_string_buffer(size.value)
    _check(get(program, buffer), "NVRTC's output")
    return buffer.raw


def _nvrtc_version() -> tuple[int, int]:
    major, minor = ctypes.c_int(), ctypes.c_int()
    _check(_nvrtc().nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)), "nvrtcVersion")
    return major.value, minor.value


def _check(error: int, call: str) -> None:
    if error:
        raise RuntimeError(f"{call} failed with CUDA error {error}")


@functools.cache
def _driver() -> ctypes.CDLL:
    library = ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
    pointer = ctypes.c_void_p
    # With declared types, launches are faster, and ctypes does not truncate addresses to 32 bits.
    library.cuLaunchKernelEx.argtypes = [ctypes.c_char_p, pointer, pointer, pointer]
    library.cuModuleLoadData.argtypes = [pointer, ctypes.c_char_p]
    library.cuModuleGetFunction.argtypes = [pointer, pointer, ctypes.c_char_p]
    library.cuFuncGetAttribute.argtypes = [pointer, ctypes.c_int, pointer]
    library.cuFuncSetAttribute.argtypes = [pointer, ctypes.c_int, ctypes.c_int]
    return library


@functools.cache
def _supports_early(device: int) -> bool:
    """Return whether kernels on a CUDA device may be launched before the previous one has ended."""
    version = ctypes.c_int()
    _check(_driver().cuDriverGetVersion(ctypes.byref(version)), "cuDriverGetVersion")
    return torch.cuda.get_device_capability(device) >= _EARLY_CAPABILITY and version.value >= _EARLY_VERSION


def _make_context_current(device: int) -> None:
    handle, context = ctypes.c_int(), ctypes.c_void_p()
    _check(_driver().cuDeviceGet(ctypes.byref(handle), device), "cuDeviceGet")
    _check(_driver().cuDevicePrimaryCtxRetain(ctypes.byref(context), handle), "cuDevicePrimaryCtxRetain")
    _check(_driver().cuCtxSetCurrent(context), "cuCtxSetCurrent")


@functools.cache
def _nvrtc() -> ctypes.CDLL:
    """Load the NVRTC of PyTorch's CUDA version from PyTorch's folder, the nvidia packages or the system."""
    major = (torch.version.cuda or "").split(".")[0]
    names = [f"libnvrtc.so.{major}", "libnvrtc.so"]
    folders = [Path(torch.__file__).parent / "lib", *_nvidia_folders(major)]
    for path in (folder / name for name in names for folder in folders):
        if path.is_file():
            return _load_nvrtc(path)
    return ctypes.CDLL(names[0])


def _load_nvrtc(path: Path) -> ctypes.CDLL:
    for builtins in sorted(path.parent.glob("libnvrtc-builtins.so*")):  # NVRTC itself would not search this folder
        ctypes.CDLL(str(builtins))
    return ctypes.CDLL(str(path))


def _nvidia_folders(major: str) -> list[Path]:
    spec = importlib.util.find_spec("nvidia")
    locations = spec.submodule_search_locations if spec else None
    return [Path(root) / part / "lib" for root in locations or () for part in (f"cu{major}", "cuda_nvrtc")]
