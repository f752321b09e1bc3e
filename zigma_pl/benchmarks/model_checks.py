"""Check of the backbones to time, against eager execution in float64."""

from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import replace

import torch
from torch import Tensor, nn

from zigma_pl.benchmarks.checks import dtype_name, relative_error
from zigma_pl.benchmarks.memory import forget_compiled_code
from zigma_pl.benchmarks.models import (
    Contestant,
    Execution,
    ModelOptions,
    autocast,
    build,
    execute,
    in_training,
    make_inputs,
)
from zigma_pl.models.backbones.base import Backbone
from zigma_pl.models.mixers import Direction

CHECKED_GRID = (6, 10)  # not a multiple of a kernel's tile
CHECKED_FRAMES = 2
CHECKED_WIDTH, CHECKED_DEPTH = 128, 5  # transformers then have 3 layers, with one long skip connection in U-ViT
# Noise added to all weights in the check, so that a missing visit order changes the output by 8 %.
CHECKED_NOISE = 0.07
TOLERANCE = {
    torch.float32: {"output": 1e-3, "gradients": 1e-3},
    torch.bfloat16: {"output": 5e-2, "gradients": 1e-1},
    torch.float16: {"output": 2e-2, "gradients": 5e-2},
}
# With captions, the noise in the weights makes gradients more sensitive to rounding (bfloat16: 0.14 on a CPU,
# 0.23 on an H200).
CAPTIONED_FACTOR = 3


def findings(contestants: Mapping[str, Contestant], options: ModelOptions, training: bool) -> Iterator[str]:
    """Yield a line for each contestant that differs from the eager float64 reference in a small case.

    Args:
        contestants: contestants to check. Eager ones are also checked in float32, where small errors are visible.
        options: device, dtype and compile scope.
        training: whether gradients are compared too.
    """
    num_frames = None if options.num_frames is None else CHECKED_FRAMES
    small = replace(options, size=None, width=CHECKED_WIDTH, depth=CHECKED_DEPTH, num_frames=num_frames)
    for contestant in contestants.values():
        dtypes = {options.dtype, torch.float32} if contestant.execution == "eager" else {options.dtype}
        for dtype in sorted(dtypes, key=str):
            errors = _errors(contestant, small, dtype, training)
            for what, error in errors.items():
                factor = CAPTIONED_FACTOR if contestant.has_captions and what == "gradients" else 1
                allowed = factor * TOLERANCE[dtype][what]
                if not error <= allowed:
                    yield (
                        f"{contestant.label} is wrong in {dtype_name(dtype)}: relative error {error:.1e} "
                        f"of the {what} against the eager float64 reference, {allowed:.0e} allowed"
                    )
    forget_compiled_code()


def _errors(contestant: Contestant, small: ModelOptions, dtype: torch.dtype, training: bool) -> dict[str, float]:
    backbone = build(contestant, CHECKED_GRID, small)
    _add_noise(backbone)
    exact = _output_and_gradients(_reference(contestant, small, backbone), "eager", small, torch.float64, training)
    tested = _output_and_gradients(backbone, contestant.execution, small, dtype, training)
    return {what: relative_error(tested[what], exact[what]) for what in exact}


def _add_noise(backbone: nn.Module) -> None:
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in backbone.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(noise.to(parameter.device), alpha=CHECKED_NOISE)


def _reference(contestant: Contestant, small: ModelOptions, like: Backbone) -> Backbone:
    """Return the backbone with the same weights in float64 on the CPU, using the reference scan."""
    reference = build(contestant, CHECKED_GRID, replace(small, device=torch.device("cpu")))
    for module in reference.modules():
        if isinstance(module, Direction):
            module.scan_backend = "reference"  # type: ignore[assignment]
    reference.load_state_dict(like.state_dict())
    return reference.double()


def _output_and_gradients(
    backbone: Backbone, execution: Execution, small: ModelOptions, dtype: torch.dtype, training: bool
) -> dict[str, list[Tensor]]:
    parameters = [parameter for parameter in backbone.parameters() if parameter.requires_grad]
    device, own_dtype = parameters[0].device, parameters[0].dtype
    inputs, target = make_inputs(backbone, 2, own_dtype)
    network = execute(backbone, execution, small.compile_scope)
    network = in_training(network) if training else network
    casting = nullcontext() if dtype == torch.float64 else autocast(device, dtype)
    with torch.set_grad_enabled(training), casting:
        output = network(*inputs)
        results = {"output": [output]}
        if training:
            loss = (output.to(own_dtype) * target).mean()
    if training:
        results["gradients"] = list(torch.autograd.grad(loss, parameters))
    return results
