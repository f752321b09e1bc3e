"""The backbones to time, their executions and their inputs."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from zigma_pl.benchmarks.checks import dtype_name
from zigma_pl.benchmarks.gated_convolution import GatedConvolution
from zigma_pl.core.batch import CAPTION, Condition
from zigma_pl.core.errors import UserError
from zigma_pl.models.backbones.base import Backbone
from zigma_pl.models.mixers import LinearAttention, Mamba, Mamba2, MixerOptions, SelfAttention
from zigma_pl.runtime.compiling import compile_regions
from zigma_pl.runtime.cuda_graphs import Inputs
from zigma_pl.runtime.graphed_sampling import GraphedBackbone
from zigma_pl.runtime.graphed_training import GraphedTraining
from zigma_pl.scan.schedule import ScanConfig

Architecture = Literal["ZigMa", "VisionMamba", "ParallelMamba", "DiT", "UViT"]
Execution = Literal["eager", "compiled", "graph", "compiled-graph"]
CompileScope = Literal["model", "blocks"]
Network = Callable[..., Tensor]  # takes the arguments of `Backbone.forward`

NUM_CHANNELS = 4  # channels of the latents; patch size 1
CAPTION_DIM, CAPTION_TOKENS = 768, 77  # as with CLIP ViT-L/14
SMALLEST_WIDTH = 384  # smallest width of the presets
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
        has_captions: whether it is conditioned on captions.
    """

    architecture: Architecture
    family: str
    execution: Execution = "eager"
    scan: ScanConfig | None = None
    counts_orders: bool = False
    mixers: tuple[MixerOptions, ...] = ()
    has_captions: bool = False

    @property
    def label(self) -> str:
        """Label in tables and charts."""
        label = self.family
        if self.counts_orders and self.scan is not None:
            label += f", {self.scan.num_orders} order{'' if self.scan.num_orders == 1 else 's'}"
        return label + (", captions" if self.has_captions else "") + EXECUTION_LABELS[self.execution]

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
        num_frames: frames of the clips; None for images.
    """

    device: torch.device
    dtype: torch.dtype
    repeats: int
    size: str | None = "B"
    width: int | None = None
    depth: int | None = None
    compile_scope: CompileScope = "blocks"
    num_frames: int | None = None

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
        clips = "" if self.num_frames is None else f", clips of {self.num_frames} frames"
        return f"{tiny}{size}, {NUM_CHANNELS} channels, patch 1{clips}, unconditional"


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


FAST, FAST2 = Mamba(activation_memory="fast"), Mamba2(activation_memory="fast")
SWEEP, RANDOM = ScanConfig("sweep", 1), ScanConfig("random", 8)
FACTORIZED = ScanConfig("zigzag", 8, video="factorized")  # has no effect on images
HYBRID = (Mamba(), Mamba(), Mamba(), SelfAttention())
HYBRID2 = (Mamba2(), Mamba2(), Mamba2(), SelfAttention())
FAMILIES: dict[str, Contestant] = {
    **executions_of("zigzag8", "ZigMa", "ZigMa zigzag-8", ScanConfig("zigzag", 8)),
    **executions_of("sweep", "ZigMa", "ZigMa sweep", SWEEP),
    **executions_of("zigzag8-fast", "ZigMa", "ZigMa zigzag-8, fast", ScanConfig("zigzag", 8), FAST),
    **executions_of("sweep-fast", "ZigMa", "ZigMa sweep, fast", SWEEP, FAST),
    **executions_of("random8-fast", "ZigMa", "ZigMa random-8, fast", RANDOM, FAST),
    **executions_of("factorized-fast", "ZigMa", "ZigMa factorized, fast", FACTORIZED, FAST),
    **executions_of("vision_mamba", "VisionMamba", "VisionMamba"),
    **executions_of("parallel8", "ParallelMamba", "parallel Mamba-8", ScanConfig("zigzag", 8)),
    **executions_of("attention", "ZigMa", "attention", ScanConfig("zigzag", 8), SelfAttention()),
    **executions_of("hybrid", "ZigMa", "ZigMa, attention in one of four", ScanConfig("zigzag", 8), *HYBRID),
    **executions_of("hybrid-sweep", "ZigMa", "ZigMa sweep, attention in one of four", SWEEP, *HYBRID),
    **executions_of("hybrid-random8", "ZigMa", "ZigMa random-8, attention in one of four", RANDOM, *HYBRID),
    **executions_of("mamba2", "ZigMa", "ZigMa zigzag-8, Mamba-2", ScanConfig("zigzag", 8), Mamba2()),
    **executions_of("mamba2-sweep", "ZigMa", "ZigMa sweep, Mamba-2", SWEEP, Mamba2()),
    **executions_of("mamba2-fast", "ZigMa", "ZigMa zigzag-8, Mamba-2, fast", ScanConfig("zigzag", 8), FAST2),
    **executions_of("mamba2-sweep-fast", "ZigMa", "ZigMa sweep, Mamba-2, fast", SWEEP, FAST2),
    **executions_of("mamba2-factorized-fast", "ZigMa", "ZigMa factorized, Mamba-2, fast", FACTORIZED, FAST2),
    **executions_of("mamba2-random8-fast", "ZigMa", "ZigMa random-8, Mamba-2, fast", RANDOM, FAST2),
    **executions_of("hybrid2", "ZigMa", "ZigMa, Mamba-2, attention in one of four", ScanConfig("zigzag", 8), *HYBRID2),
    **executions_of("linear", "ZigMa", "linear attention", ScanConfig("zigzag", 8), LinearAttention()),
    **executions_of("conv-sweep", "ZigMa", "convolution, sweep", SWEEP, GatedConvolution()),
    **executions_of("conv-zigzag", "ZigMa", "convolution, zigzag-8", ScanConfig("zigzag", 8), GatedConvolution()),
    **executions_of("conv-hilbert", "ZigMa", "convolution, Hilbert-8", ScanConfig("hilbert", 8), GatedConvolution()),
    **executions_of("conv-random", "ZigMa", "convolution, random-8", RANDOM, GatedConvolution()),
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
    if contestant.has_captions:
        more["caption_dim"] = CAPTION_DIM
    if options.num_frames is not None:
        more["latent_frames"] = options.num_frames
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


def make_inputs(backbone: Backbone, batch_size: int, dtype: torch.dtype = torch.float32) -> tuple[Inputs, Tensor]:
    """Return random inputs for a backbone, on its device, and a target of the shape of x_t.

    Times are in [0, 1]. Captions have 1 to CAPTION_TOKENS tokens, and one of ten is dropped, as in training.
    """
    device = next(backbone.parameters()).device
    generator = torch.Generator().manual_seed(1)
    x_t, target = torch.randn(2, batch_size, *backbone.latent_shape, generator=generator).to(device, dtype)
    t = torch.rand(batch_size, generator=generator).to(device, dtype)
    if backbone.caption_dim is None:
        return Inputs(x_t, t, {}, {}), target
    features = torch.randn(batch_size, CAPTION_TOKENS, backbone.caption_dim, generator=generator)
    lengths = torch.randint(1, CAPTION_TOKENS + 1, (batch_size, 1), generator=generator)
    caption = Condition(features.to(device, dtype), (torch.arange(CAPTION_TOKENS) < lengths).to(device))
    dropped = (torch.rand(batch_size, generator=generator) < 0.1).to(device)
    return Inputs(x_t, t, {CAPTION: caption}, {CAPTION: dropped}), target
