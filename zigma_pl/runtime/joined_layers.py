"""Work of all layers of a backbone at once: modulations, and products of weights, which depend on no tokens.

Axes: B batch, D width.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, silu

from zigma_pl.core.torch_private import is_compiled
from zigma_pl.models.backbones.base import Backbone
from zigma_pl.models.backbones.token_backbone import TokenBackbone
from zigma_pl.models.block import BlockConditions
from zigma_pl.models.conditioners import Entry
from zigma_pl.models.layers.replaceable import is_replaceable
from zigma_pl.models.mixers import Mixer
from zigma_pl.ops.rms_norm import scale_columns_of_all


def modulated_modules(backbone: Backbone) -> dict[str, nn.Module]:
    """Return the modules whose `modulation` is a SiLU and a float32 linear layer with a bias, by their paths.

    Modulations with hooks or another forward method, or for conditionings of another width, are left out, and all of
    backbones that do not embed conditions by `TokenBackbone.block_conditions`.
    """
    if not isinstance(backbone, TokenBackbone):
        return {}
    return {
        path: module
        for path, module in backbone.named_modules()
        if isinstance(modulation := getattr(module, "modulation", None), nn.Sequential)
        and [type(layer) for layer in modulation] == [nn.SiLU, nn.Linear]
        and is_replaceable(modulation, nn.Sequential)
        and all(is_replaceable(layer, type(layer)) for layer in modulation)
        and _is_joinable(modulation_product(module), backbone.width)
    }


def _is_joinable(layer: nn.Linear, width: int) -> bool:
    return layer.weight.dtype == torch.float32 and layer.bias is not None and layer.in_features == width


def modulation_product(module: nn.Module) -> nn.Linear:
    """Return the linear layer of a modulated module."""
    return cast("nn.Sequential", module.modulation)[1]  # type: ignore[return-value]


def join_modulations(network: TokenBackbone, weight: Tensor, bias: Tensor) -> None:
    """Make a network compute all modulations when it embeds the conditions, and its layers use the results.

    Args:
        network: the network, which is changed in place.
        weight, bias: those of the linear layers of all modulated modules, one after the other.
    """
    modules = modulated_modules(network).values()
    sizes = [modulation_product(module).out_features for module in modules]
    parts = [ModulationPart(*both) for both in zip(weight.split(sizes), bias.split(sizes), strict=True)]
    for module, part in zip(modules, parts, strict=True):
        module.modulation = part
    embed = network.block_conditions

    def embed_and_modulate(t: Tensor, entries: list[Entry]) -> BlockConditions:
        conditions = embed(t, entries)
        modulations = linear(silu(conditions.modulation), weight, bias).split(sizes, dim=-1)
        for part, modulation in zip(parts, modulations, strict=True):
            part.conditioning, part.modulation = conditions.modulation, modulation
        return conditions

    network.block_conditions = embed_and_modulate  # type: ignore[method-assign]


class ModulationPart(nn.Module):
    """Replaces the modulation of a layer: returns what was computed for all layers, (B, k D).

    Args:
        weight, bias: those of the layer, for a conditioning of its own.
    """

    conditioning: Tensor | None = None
    modulation: Tensor

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight, self.bias = weight, bias

    def forward(self, conditioning: Tensor) -> Tensor:
        """Return the modulation for the conditioning, (B, D)."""
        if conditioning is self.conditioning:
            return self.modulation
        return linear(silu(conditioning), self.weight, self.bias)


def mixer_weights(backbone: nn.Module, dtype: torch.dtype) -> dict[tuple[str, str], tuple[Tensor, Tensor]]:
    """Return `Mixer.scaled_weights` of all mixers, by the path of the mixer and the name of its attribute."""
    mixers = [(path, module) for path, module in backbone.named_modules() if isinstance(module, Mixer)]
    return {(path, name): pair for path, mixer in mixers for name, pair in mixer.scaled_weights(dtype).items()}


@contextmanager
def joined_layers(
    backbone: Backbone, tensors: dict[str, Tensor], dtype: torch.dtype | None
) -> Iterator[dict[str, Tensor]]:
    """Compute modulations, and products of weights, of all layers at once within the block, for a `functional_call`.

    Without autocast this is not done, so that the results keep their bits. Neither is it if blocks are compiled, which
    would be compiled again, or recomputed in the backward pass.

    Args:
        backbone: the backbone.
        tensors: what replaces its parameters, by their names.
        dtype: dtype of autocast; None without autocast.

    Yields: what replaces the parameters and attributes in the call.
    """
    is_recomputed = isinstance(backbone, TokenBackbone) and backbone.gradient_checkpointing
    if dtype is None or is_recomputed or any(map(is_compiled, backbone.modules())):
        yield tensors
        return
    parameters = dict(backbone.named_parameters(remove_duplicate=False))
    leaves: dict[Tensor, Tensor] = {parameters[name]: leaf for name, leaf in tensors.items()}
    # Weights that a mixer computes itself, as in `torch.nn.utils.parametrize`, are not among the parameters.
    known = set(parameters.values())
    pairs = {key: pair for key, pair in mixer_weights(backbone, dtype).items() if known.issuperset(pair)}
    given = [(leaves.get(matrix, matrix), leaves.get(factors, factors)) for matrix, factors in pairs.values()]
    products = zip(pairs, scale_columns_of_all(given, dtype), strict=True)
    tensors = tensors | {f"{path}.{name}": product for (path, name), product in products}
    modules = modulated_modules(backbone)
    if not modules:
        yield tensors
        return
    assert isinstance(backbone, TokenBackbone)
    layers = [modulation_product(module) for module in modules.values()]
    # Cast one by one, as autocast would, for `RecordedLeaves`.
    weight = torch.cat([leaves.get(layer.weight, layer.weight).to(dtype) for layer in layers])
    bias = torch.cat([leaves.get(layer.bias, layer.bias).to(dtype) for layer in layers])
    originals = [(module, module.modulation) for module in modules.values()]
    own = vars(backbone).get("block_conditions")
    join_modulations(backbone, weight, bias)
    prefixes = tuple(f"{path}.modulation." for path in modules)
    try:
        yield {name: tensor for name, tensor in tensors.items() if not name.startswith(prefixes)}
    finally:
        del backbone.block_conditions
        if own is not None:
            backbone.block_conditions = own  # type: ignore[method-assign]
        for module, modulation in originals:
            module.modulation = modulation
