"""The backbones to time, their executions, and the check against eager execution in float64."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from zigma_pl.benchmarks.checks import dtype_name, relative_error
from zigma_pl.benchmarks.gated_convolution import GatedConvolution
from zigma_pl.benchmarks.memory import forget_compiled_code
from zigma_pl.core.errors import UserError
from zigma_pl.models.backbones.base import Backbone
from zigma_pl.models.mixers import Direction, LinearAttention, Mamba, Mamba2, MixerOptions, SelfAttention
from zigma_pl.runtime.compiling import compile_regions
from zigma_pl.runtime.graphed_sampling import GraphedBackbone
from zigma_pl.runtime.graphed_training import GraphedTraining
from zigma_pl.scan.schedule import ScanConfig

Architecture = Literal["ZigMa", "VisionMamba", "ParallelMamba", "DiT", "UViT"]
Execution = Literal["eager", "compiled", "graph", "compiled-graph"]
CompileScope = Literal["model", "blocks"]
Network = Callable[[Tensor, Tensor], Tensor]

NUM_CHANNELS = 4  # channels of the latents; patch size 1
CHECKED_GRID = (6, 10)  # not a multiple of a kernel's tile
CHECKED_WIDTH, CHECKED_DEPTH = 128, 5  # transformers then have 3 layers, with one long skip connection in U-ViT
# Noise added to all weights in the check, so that a missing visit order changes the output by 8 %.
CHECKED_NOISE = 0.07
SMALLEST_WIDTH = 384  # smallest width of the presets
TOLERANCE = {
    torch.float32: {"output": 1e-3, "gradients": 1e-3},
    torch.bfloat16: {"output": 5e-2, "gradients": 1e-1},
    torch.float16: {"output": 2e-2, "gradients": 5e-2},
}
_HOMES: dict[Architecture, str] = {
    "ZigMa": "zigma_pl.models.backbones.zigma",
    "VisionMamba": "zigma_pl.models.backbones.vision_mamba",
    "ParallelMamba": "zigma_pl.models.backbones.parallel_mamba",
    "DiT": "zigma_pl.models.backbones.dit",
    "UViT": "zigma_pl.models.backbones.uvit",
}
_SCANNED: tuple[Architecture, ...] = ("ZigMa", "VisionMamba", "ParallelMamba")
EXECUTION_LABELS: dict[Execution, str] = {
    "eager": "",
    "compiled": ", compiled",
    "graph": ", CUDA graph",
    "compiled-graph": ", compiled, CUDA graph",
}


@dataclass(frozen=True)
class Contestant:
    """A backbone and how it is executed.

    Args:
        architecture: class name of the backbone.
        family: name in tables.
        execution: eager, with torch.compile, replayed as a CUDA graph, or both.
        scan: visit orders, None for transformers.
        counts_orders: whether its label includes the number of orders.
        mixers: plan of mixers; empty for the backbone's default.
    """

    architecture: Architecture
    family: str
    execution: Execution = "eager"
    scan: ScanConfig | None = None
    counts_orders: bool = False
    mixers: tuple[MixerOptions, ...] = ()

    @property
    def label(self) -> str:
        """Label in tables and charts."""
        label = self.family
        if self.counts_orders and self.scan is not None:
            label += f", {self.scan.num_orders} order{'' if self.scan.num_orders == 1 else 's'}"
        return label + EXECUTION_LABELS[self.execution]

    def describe(self) -> dict[str, Any]:
        """Return plain values for the JSON record."""
        num_orders = None if self.scan is None else self.scan.num_orders
        return {"label": self.label, "family": self.family, "execution": self.execution, "num_orders": num_orders}


@dataclass(frozen=True)
class ModelOptions:
    """Options of all model benchmarks.

    Args:
        device: device to run on.
        dtype: dtype of autocast; float32 for no autocast.
        repeats: samples per contestant.
        size: preset of the backbones, or None with width and depth.
        width: D.
        depth: layers of the Mamba backbones; transformers have half as many, rounded up, as in the presets.
        compile_scope: compile the whole model, or its blocks and other parts separately, which takes seconds instead of
            minutes. With CUDA graphs, parts are always compiled separately.
    """

    device: torch.device
    dtype: torch.dtype
    repeats: int
    size: str | None = "B"
    width: int | None = None
    depth: int | None = None
    compile_scope: CompileScope = "blocks"

    def describe(self, matched: bool = False) -> str:
        """Return a description of size and precision; see `describe_size`."""
        precision = "float32" if self.dtype == torch.float32 else f"{dtype_name(self.dtype)} autocast"
        return f"{self.describe_size(matched)}, {precision}"

    def describe_size(self, matched: bool = False) -> str:
        """Return a description of the size, with a warning if models are smaller than every preset.

        matched: whether depths are from `model_table.match_parameters`.
        """
        sizes = {"size": self.size, "width": self.width, "depth": self.depth}
        size = ", ".join(f"{name} {value}" for name, value in sizes.items() if value is not None)
        if self.depth is not None:
            size += " (of ZigMa; others have equal parameters)" if matched else " (transformers: half of it)"
        tiny = "TINY MODELS, not the paper's: " if self.width is not None and self.width < SMALLEST_WIDTH else ""
        return f"{tiny}{size}, {NUM_CHANNELS} channels, patch 1, unconditional"


def contestants_named(
    contestants: Mapping[str, Contestant], chosen: Iterable[str], device: torch.device
) -> dict[str, Contestant]:
    """Return the contestants with these names.

    Raises: UserError if one does not exist or needs another device.
    """
    chosen = list(chosen)
    for name in chosen:
        if name not in contestants:
            raise UserError(f"--contestants {name} does not exist: choose from {', '.join(contestants)}")
        if "graph" in contestants[name].execution and device.type != "cuda":
            raise UserError(
                f"--contestants {name} uses a CUDA graph, but the device is {device.type}: use --device cuda"
            )
    return {name: contestants[name] for name in chosen}


def executions_of(
    prefix: str, architecture: Architecture, family: str, scan: ScanConfig | None = None, *mixers: MixerOptions
) -> dict[str, Contestant]:
    """Return contestants by name for all executions: prefix, prefix-compiled, prefix-graph, prefix-compiled-graph."""
    return {
        prefix if execution == "eager" else f"{prefix}-{execution}": Contestant(
            architecture, family, execution, scan, mixers=mixers
        )
        for execution in get_args(Execution)
    }


FAST = Mamba(activation_memory="fast")
HYBRID = (Mamba(), Mamba(), Mamba(), SelfAttention())
HYBRID2 = (Mamba2(), Mamba2(), Mamba2(), SelfAttention())
FAMILIES: dict[str, Contestant] = {
    **executions_of("zigzag8", "ZigMa", "ZigMa zigzag-8", ScanConfig("zigzag", 8)),
    **executions_of("sweep", "ZigMa", "ZigMa sweep", ScanConfig("sweep", 1)),
    **executions_of("zigzag8-fast", "ZigMa", "ZigMa zigzag-8, fast", ScanConfig("zigzag", 8), FAST),
    **executions_of("sweep-fast", "ZigMa", "ZigMa sweep, fast", ScanConfig("sweep", 1), FAST),
    **executions_of("vision_mamba", "VisionMamba", "VisionMamba"),
    **executions_of("parallel8", "ParallelMamba", "parallel Mamba-8", ScanConfig("zigzag", 8)),
    **executions_of("attention", "ZigMa", "attention", ScanConfig("zigzag", 8), SelfAttention()),
    **executions_of("hybrid", "ZigMa", "ZigMa, attention in one of four", ScanConfig("zigzag", 8), *HYBRID),
    **executions_of("mamba2", "ZigMa", "ZigMa zigzag-8, Mamba-2", ScanConfig("zigzag", 8), Mamba2()),
    **executions_of("mamba2-sweep", "ZigMa", "ZigMa sweep, Mamba-2", ScanConfig("sweep", 1), Mamba2()),
    **executions_of("hybrid2", "ZigMa", "ZigMa, Mamba-2, attention in one of four", ScanConfig("zigzag", 8), *HYBRID2),
    **executions_of("linear", "ZigMa", "linear attention", ScanConfig("zigzag", 8), LinearAttention()),
    **executions_of("conv-sweep", "ZigMa", "convolution, sweep", ScanConfig("sweep", 1), GatedConvolution()),
    **executions_of("conv-zigzag", "ZigMa", "convolution, zigzag-8", ScanConfig("zigzag", 8), GatedConvolution()),
    **executions_of("conv-hilbert", "ZigMa", "convolution, Hilbert-8", ScanConfig("hilbert", 8), GatedConvolution()),
    **executions_of("conv-random", "ZigMa", "convolution, random-8", ScanConfig("random", 8), GatedConvolution()),
    **executions_of("dit", "DiT", "DiT"),
    **executions_of("uvit", "UViT", "U-ViT"),
}


# ------------------------------------------------------------------------------------------------------- building
def build(contestant: Contestant, grid: tuple[int, int], options: ModelOptions, **more: Any) -> Backbone:
    """Build a backbone on the device with fixed random weights, without all-zero parameters."""
    torch.manual_seed(0)
    with options.device:
        backbone = _construct(contestant, grid, options, **more)
    fill_zeros(backbone)
    return backbone


def outline(contestant: Contestant, grid: tuple[int, int], options: ModelOptions) -> Backbone:
    """Build a backbone on the meta device, to count its parameters and operations."""
    with torch.device("meta"):
        return _construct(contestant, grid, options)


def _construct(contestant: Contestant, grid: tuple[int, int], options: ModelOptions, **more: Any) -> Backbone:
    architecture = contestant.architecture
    backbone_class = getattr(import_module(_HOMES[architecture]), architecture)
    if contestant.mixers:
        more = {"mixers": list(contestant.mixers)} | more
    if contestant.scan is not None:
        more["scan"] = contestant.scan
    depth = options.depth
    if depth is not None and architecture not in _SCANNED:
        depth = -(-depth // 2)
    size = {"size": options.size, "width": options.width, "depth": depth}
    return backbone_class(NUM_CHANNELS, *grid, patch_size=1, **size, **more)


def fill_zeros(backbone: nn.Module, std: float = 0.2) -> None:
    """Initialise all-zero parameters randomly, such as gates that would disable a whole layer."""
    with torch.no_grad():
        for parameter in backbone.parameters():
            if not parameter.any():
                parameter.normal_(std=std)


def execute(backbone: Backbone, execution: Execution, scope: CompileScope) -> Network:
    """Return a callable that runs the backbone with this execution; compiles the backbone in place."""
    if "graph" in execution:
        return GraphedBackbone(backbone, compile_backbone="compiled" in execution)
    if execution == "compiled" and scope == "model":
        backbone.compile(fullgraph=True, dynamic=False)
    elif execution == "compiled":
        compile_regions(backbone, fullgraph=True, dynamic=False)
    return backbone


def in_training(network: Network) -> Network:
    """Return a callable for training with the network's execution; compiles the backbone in place."""
    if not isinstance(network, GraphedBackbone):
        return network
    if network.compile_backbone:
        compile_regions(network.backbone, fullgraph=True, dynamic=False)
    return GraphedTraining(network.backbone)


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager:
    """Return an autocast context for dtype; a null context for float32."""
    return nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype)


def make_inputs(batch_size: int, grid: tuple[int, int], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return random x_t (B, C, H, W), t (B,) in [0, 1], and a target of the shape of x_t."""
    generator = torch.Generator().manual_seed(1)
    x_t, target = torch.randn(2, batch_size, NUM_CHANNELS, *grid, generator=generator).to(device)
    return x_t, torch.rand(batch_size, generator=generator).to(device), target


# ------------------------------------------------------------------------------------------------------- checking
def findings(contestants: Mapping[str, Contestant], options: ModelOptions, training: bool) -> Iterator[str]:
    """Yield a line for each contestant that differs from the eager float64 reference in a small case.

    Args:
        contestants: contestants to check. Eager ones are also checked in float32, where small errors are visible.
        options: device, dtype and compile scope.
        training: whether gradients are compared too.
    """
    small = ModelOptions(
        options.device, options.dtype, 1, None, CHECKED_WIDTH, CHECKED_DEPTH, compile_scope=options.compile_scope
    )
    for contestant in contestants.values():
        dtypes = {options.dtype, torch.float32} if contestant.execution == "eager" else {options.dtype}
        for dtype in sorted(dtypes, key=str):
            errors = _errors(contestant, small, dtype, training)
            for what, error in errors.items():
                if not error <= TOLERANCE[dtype][what]:
                    yield (
                        f"{contestant.label} is wrong in {dtype_name(dtype)}: relative error {error:.1e} "
                        f"of the {what} against the eager float64 reference, {TOLERANCE[dtype][what]:.0e} allowed"
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
    on_cpu = ModelOptions(torch.device("cpu"), torch.float32, 1, None, small.width, small.depth)
    reference = build(contestant, CHECKED_GRID, on_cpu)
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
    x_t, t, target = (tensor.to(own_dtype) for tensor in make_inputs(2, CHECKED_GRID, device))
    network = execute(backbone, execution, small.compile_scope)
    network = in_training(network) if training else network
    casting = nullcontext() if dtype == torch.float64 else autocast(device, dtype)
    with torch.set_grad_enabled(training), casting:
        output = network(x_t, t)
        results = {"output": [output]}
        if training:
            loss = (output.to(own_dtype) * target).mean()
    if training:
        results["gradients"] = list(torch.autograd.grad(loss, parameters))
    return results
