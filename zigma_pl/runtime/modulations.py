"""The modulations of all layers of a backbone, which depend only on time and conditions, in one matrix product.

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


def modulated_modules(backbone: nn.Module) -> dict[str, nn.Module]:
    """Return the modules whose `modulation` is a SiLU and a float32 linear layer, by their paths."""
    return {
        path: module
        for path, module in backbone.named_modules()
        if isinstance(modulation := getattr(module, "modulation", None), nn.Sequential)
        and [type(layer) for layer in modulation] == [nn.SiLU, nn.Linear]
        and modulation_product(module).weight.dtype == torch.float32
    }


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
    parts = [ModulationPart() for _ in modules]
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
    """Replaces the modulation of a layer: returns the modulation that was computed for it, (B, k D)."""

    conditioning: Tensor
    modulation: Tensor

    def forward(self, conditioning: Tensor) -> Tensor:
        """Return the layer's modulation for the conditioning, (B, D), which must be the same for all layers."""
        assert conditioning is self.conditioning, "the layers have different conditionings"
        return self.modulation


@contextmanager
def joined_modulations(
    backbone: Backbone, tensors: dict[str, Tensor], dtype: torch.dtype | None
) -> Iterator[dict[str, Tensor]]:
    """Join the modulations of a backbone within the block, for a `functional_call`.

    Without autocast they are not joined, so that the results keep their bits. Neither are they if blocks are compiled,
    which would be compiled again, or recomputed in the backward pass.

    Args:
        backbone: the backbone.
        tensors: what replaces its parameters, by their names.
        dtype: dtype of autocast; None without autocast.

    Yields: the tensors without those that the joined product takes.
    """
    modules = modulated_modules(backbone)
    if (
        dtype is None
        or not modules
        or not isinstance(backbone, TokenBackbone)
        or backbone.gradient_checkpointing
        or any(map(is_compiled, backbone.modules()))
    ):
        yield tensors
        return
    tensors = dict(tensors)
    weights, biases = [], []
    for path, module in modules.items():
        product = modulation_product(module)
        # Cast one by one, as autocast would, for `RecordedLeaves`.
        weights.append(tensors.pop(f"{path}.modulation.1.weight", product.weight).to(dtype))
        biases.append(tensors.pop(f"{path}.modulation.1.bias", product.bias).to(dtype))
    originals = [(module, module.modulation) for module in modules.values()]
    join_modulations(backbone, torch.cat(weights), torch.cat(biases))
    try:
        yield tensors
    finally:
        del backbone.block_conditions
        for module, modulation in originals:
            module.modulation = modulation
