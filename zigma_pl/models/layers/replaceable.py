"""Whether kernels may compute the output of a layer from its parameters, without calling the layer."""

from collections.abc import Callable
from typing import Any

from torch import nn

from zigma_pl.core.torch_private import hooks_of


class Watcher:
    """A forward hook that only reads outputs, and does not mind if kernels replace the layer, so that it is not called.

    Args:
        note: called with the output of the layer.
    """

    def __init__(self, note: Callable[[Any], None]) -> None:
        self._note = note

    def __call__(self, module: nn.Module, arguments: Any, output: Any) -> None:
        """Pass on the output."""
        self._note(output)


def has_hooks(module: nn.Module) -> bool:
    """Return whether a module has hooks other than a `Watcher`."""
    return any(not isinstance(hook, Watcher) for hook in hooks_of(module))


def is_replaceable(layer: nn.Module, kind: type[nn.Module]) -> bool:
    """Return whether calling a layer runs the forward method of a class and nothing else.

    It does not if the layer was replaced, for example by a LoRA layer, or if it has hooks or a forward method of its
    own. The layer may be parametrised (`torch.nn.utils.parametrize`), since its attribute `weight` is then computed.
    """
    return type(layer).forward is kind.forward and "forward" not in vars(layer) and not has_hooks(layer)


def is_product(layer: nn.Module) -> bool:
    """Return whether calling a layer multiplies by its weight and does nothing else."""
    return is_replaceable(layer, nn.Linear) and layer.bias is None
