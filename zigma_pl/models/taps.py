"""The output of inner layers of a backbone, for loss terms that read it."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

from zigma_pl.core.errors import UserError
from zigma_pl.models.mixers import Branch


@contextmanager
def tapped(backbone: nn.Module, layers: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Within the block, keep what the named layers give when the backbone is called.

    Args:
        backbone: the network.
        layers: names as in `backbone.named_modules()`.

    Yields: a dictionary that fills up with the layers' output. Of a block that returns its tokens with a branch that
        has yet to be added, the sum.

    Raises: UserError for a layer that the backbone does not have.
    """
    features: dict[str, Tensor] = {}

    def keep(name: str, module: nn.Module, arguments: Any, output: Any) -> None:
        features[name] = _tokens_of(output)

    with ExitStack() as hooks:
        for name in layers:
            hooks.callback(_layer(backbone, name).register_forward_hook(partial(keep, name)).remove)
        yield features


def _layer(backbone: nn.Module, name: str) -> nn.Module:
    try:
        return backbone.get_submodule(name)
    except AttributeError:
        children = ", ".join(child for child, _ in backbone.named_children())
        raise UserError(
            f"loss term: the backbone has no layer {name!r}; layers are named from {children}, such as blocks.0"
        ) from None


def _tokens_of(output: Any) -> Tensor:
    if isinstance(output, Tensor):
        return output
    x, carry = output
    if isinstance(carry, Branch):  # which the next norm would add
        return x + carry.gate * carry.raster_rows()
    return x if carry is None else x + carry
