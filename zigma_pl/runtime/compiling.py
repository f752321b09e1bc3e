"""Regional compilation of a backbone by torch.compile, which takes seconds instead of minutes for the whole model."""

from typing import Any

from torch import nn

from zigma_pl.core.torch_private import allow_compiled_forms

# Per function. All blocks share a function, which is compiled for training, for sampling and for every batch size.
MAX_COMPILED_FORMS = 32


def compile_regions(backbone: nn.Module, **options: Any) -> None:
    """Compile, in place and separately, every block, every conditioner and every other child of a backbone.

    Blocks of the same class share their compiled code. Compilation happens at the first call.

    Args:
        backbone: a network whose children are lists of blocks, conditioners, embeddings and the final layer.
        options: options of torch.compile.
    """
    allow_compiled_forms(MAX_COMPILED_FORMS)
    for region in regions(backbone):
        region.compile(**options)


def regions(backbone: nn.Module) -> list[nn.Module]:
    """Return the modules to compile; modules of PyTorch itself, such as a final norm, are a single kernel already."""
    containers = (nn.ModuleList, nn.ModuleDict)
    parts = [
        part
        for child in backbone.children()
        for part in (child.children() if isinstance(child, containers) else [child])
    ]
    return [part for part in parts if not type(part).__module__.startswith("torch.nn.")]
