"""Access to the outputs of inner layers of a backbone, for loss terms."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

from zigma_pl.core.errors import UserError
from zigma_pl.models.layers.replaceable import Watcher
from zigma_pl.models.mixers import Branch
from zigma_pl.ops.rows import UnscaledRows


@contextmanager
def tapped(backbone: nn.Module, layers: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Collect the outputs of the named layers when the backbone is called within the block.

    Args:
        backbone: the network.
        layers: names as in `backbone.named_modules()`.

    Yields: a dictionary to which the layers' outputs are added at the end of the block. For a block that returns tokens
        and a branch that has not been added yet, the output is their sum.

    Raises: UserError for a layer that the backbone does not have, or that was not called, for example because a kernel
        computes its output together with that of other layers.
    """
    features: dict[str, Tensor] = {}
    outputs: dict[str, Any] = {}

    with ExitStack() as hooks:
        for name in layers:
            watcher = Watcher(partial(outputs.__setitem__, name))
            hooks.callback(_layer(backbone, name).register_forward_hook(watcher).remove)
        yield features
    for name in layers:
        if name not in outputs:
            raise UserError(f"loss term: layer {name!r} was not called on its own: use a whole block, such as blocks.0")
    # Not in the hooks: with gradient checkpointing, a recomputation without hooks must save the same tensors.
    features.update({name: _tokens_of(output) for name, output in outputs.items()})


def _layer(backbone: nn.Module, name: str) -> nn.Module:
    try:
        return backbone.get_submodule(name)
    except AttributeError:
        children = ", ".join(child for child, _ in backbone.named_children())
        raise UserError(
            f"loss term: the backbone has no layer {name!r}: use names that start with {children}, such as blocks.0"
        ) from None


def _tokens_of(output: Any) -> Tensor:
    if isinstance(output, UnscaledRows):
        return output.scaled()
    if isinstance(output, Tensor):
        return output
    x, pending = output
    if isinstance(pending, Branch):
        return x + pending.gate * pending.raster_rows()
    return x if pending is None else x + pending
