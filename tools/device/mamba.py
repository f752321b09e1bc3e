"""Time mamba-ssm's selective scan and ours in one run: python tools/device/mamba.py FOLDER RESULTS.json [--build-only].

FOLDER contains the sources of its extension (csrc/selective_scan), which is built for this GPU. With --build-only the
script stops after the build.
"""

import functools
import json
import sys
from pathlib import Path

import torch
from inputs import bfloat16_arguments, random_order
from kernels import SHAPES, median_ms, time_scan
from torch.utils.cpp_extension import load

folder = Path(sys.argv[1])
major, minor = torch.cuda.get_device_capability()
flags = ["-O3", "-std=c++17", "--use_fast_math", "--expt-relaxed-constexpr", "--expt-extended-lambda"]
flags += [f"-U__CUDA_NO_{name}__" for name in ("HALF_OPERATORS", "HALF_CONVERSIONS", "BFLOAT16_OPERATORS")]
flags += ["-U__CUDA_NO_BFLOAT16_CONVERSIONS__", "-U__CUDA_NO_BFLOAT162_OPERATORS__"]
flags += ["-U__CUDA_NO_BFLOAT162_CONVERSIONS__", f"-gencode=arch=compute_{major}{minor},code=sm_{major}{minor}"]
sources = sorted(str(path) for pattern in ("*.cpp", "*.cu") for path in folder.glob(pattern))
extension = load(
    "selective_scan_cuda", sources, extra_cflags=["-O3", "-std=c++17"], extra_cuda_cflags=flags,
    extra_include_paths=[str(folder)],
)  # fmt: skip
if "--build-only" in sys.argv:
    sys.exit()

results = {}
for shape in SHAPES:
    arguments = bfloat16_arguments(shape)
    u, delta, B, C, gate = (arguments[n].transpose(1, 2).contiguous() for n in ("u", "delta", "B", "C", "gate"))
    A, skip, bias = (arguments[n] for n in ("A", "skip", "delta_bias"))
    B, C = B[:, None], C[:, None]
    out, x, gated = extension.fwd(u, delta, A, B, C, skip, gate, bias, True)
    dout, dgate = torch.randn_like(gated), torch.empty_like(gate)

    inputs = (u, delta, A, B, C, skip, gate, bias)
    forward = functools.partial(extension.fwd, *inputs, True)
    backward = functools.partial(extension.bwd, *inputs, dout, x, out, dgate, True, False)
    theirs = {"forward": median_ms(forward), "backward": median_ms(backward)}
    ours = time_scan(arguments, random_order(shape[1]))
    ratio = (ours["forward"] + ours["backward"]) / sum(theirs.values())
    results[str(shape)] = {"mamba": theirs, "ours": ours, "ratio": ratio}
    print(shape, {n: f"{t:.3f}" for n, t in theirs.items()}, {n: f"{t:.3f}" for n, t in ours.items()}, f"{ratio:.3f}")
Path(sys.argv[2]).write_text(json.dumps(results, indent=1))
