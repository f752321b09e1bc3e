"""torch.compile of a backbone region by region, which takes seconds where the whole model takes minutes."""

from typing import Any

from torch import nn

from zigma_pl.core.torch_private import allow_compiled_forms

# Of one function. Blocks share theirs, for training and sampling, and for every batch size that is met.
MAX_COMPILED_FORMS = 32


def compile_regions(backbone: nn.Module, **options: Any) -> None:
    """Compile, in place, every block of the backbone's lists, every conditioner, and each of its other parts by itself.

    Blocks of one kind share their compiled code. Nothing is compiled before the first call.

    Args:
        backbone: whose direct children are lists of blocks, conditioners, embeddings and the final layer.
        options: as of torch.compile.
    """
    allow_compiled_forms(MAX_COMPILED_FORMS)
    for region in regions(backbone):
        region.compile(**options)


def regions(backbone: nn.Module) -> list[nn.Module]:
    """Return the modules that are compiled: not PyTorch's own, such as a last norm, each of which is one kernel."""
    held = (nn.ModuleList, nn.ModuleDict)
    parts = [
        part for child in backbone.children() for part in (child.children() if isinstance(child, held) else [child])
    ]
    return [part for part in parts if not type(part).__module__.startswith("torch.nn.")]
