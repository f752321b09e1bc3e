"""A backbone's twin for sampling, which gives the same numbers without doing in every call what can be done once.

Axes: B batch, D width.
"""

import copy
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, silu

from zigma_pl.core.torch_private import copy_all
from zigma_pl.models.backbones.base import Backbone
from zigma_pl.models.backbones.token_backbone import TokenBackbone
from zigma_pl.models.block import BlockConditions
from zigma_pl.models.conditioners import Entry
from zigma_pl.runtime.compiling import compile_regions
from zigma_pl.runtime.cuda_graphs import addresses


class SamplingTwin:
    """Computes, without gradients and under autocast, what the backbone computes, with less work.

    The weights of linear layers are held once more in autocast's dtype, rounded as autocast rounds them, instead of
    being cast in every call; and the modulations of all layers, which depend on time and conditions alone, are one
    product. Every other parameter and buffer is the backbone's own. The copies are no part of the backbone, so no
    checkpoint has them.

    Args:
        backbone: the network.
        dtype: of autocast; None without autocast, and then the twin is a plain one.
        compile_backbone: run the twin's regions through torch.compile.
    """

    def __init__(self, backbone: Backbone, dtype: torch.dtype | None, compile_backbone: bool = False) -> None:
        self._backbone = backbone
        self._copies: list[tuple[Tensor, Tensor]] = []  # each with what it is a copy of
        with torch.inference_mode(False), torch.no_grad():  # else the copies could not be written outside of it
            self.network = self._plain_twin() if dtype is None else self._lean_twin(dtype)
        self._addresses = addresses(backbone)
        if compile_backbone:
            compile_regions(self.network)

    def _plain_twin(self) -> Backbone:
        return copy.deepcopy(self._backbone, {id(tensor): tensor for tensor in _tensors(self._backbone)})

    def _lean_twin(self, dtype: torch.dtype) -> Backbone:
        products = [_modulation_product(module) for module in modulated_modules(self._backbone)]
        replaced: dict[int, Tensor] = {id(tensor): tensor for tensor in _tensors(self._backbone)}
        for layer in self._backbone.modules():
            # Not the biases: the scan wants that of its steps in float32.
            if isinstance(layer, nn.Linear) and layer.weight.dtype == torch.float32 and layer not in products:
                held = nn.Parameter(layer.weight.to(dtype), requires_grad=False)
                replaced[id(layer.weight)] = held
                self._copies.append((held, layer.weight))
        network = copy.deepcopy(self._backbone, replaced)
        if products:
            assert isinstance(network, TokenBackbone)
            self._join_modulations(network, products, dtype)
        return network

    def _join_modulations(self, network: TokenBackbone, products: list[nn.Linear], dtype: torch.dtype) -> None:
        """Let the network compute all modulations where it embeds the conditions, and its layers take theirs."""
        sizes = [product.out_features for product in products]
        weight, bias = (
            torch.cat([getattr(product, name) for product in products]).to(dtype) for name in ("weight", "bias")
        )
        for name, joined in (("weight", weight), ("bias", bias)):
            sources = [getattr(product, name) for product in products]
            self._copies += zip(joined.split(sizes), sources, strict=True)
        parts = [ModulationPart() for _ in products]
        for module, part in zip(modulated_modules(network), parts, strict=True):
            module.modulation = part
        embed = network.block_conditions

        def embed_and_modulate(t: Tensor, entries: list[Entry]) -> BlockConditions:
            conditions = embed(t, entries)
            modulations = linear(silu(conditions.modulation), weight, bias).split(sizes, dim=-1)
            for part, modulation in zip(parts, modulations, strict=True):
                part.conditioning, part.modulation = conditions.modulation, modulation
            return conditions

        network.block_conditions = embed_and_modulate  # type: ignore[method-assign]

    def is_of(self, backbone: Backbone) -> bool:
        """Whether the backbone's parameters and buffers still lie where they lay, and it is in the same mode."""
        return self._addresses == addresses(backbone) and self.network.training == backbone.training

    @torch.no_grad()
    def refresh(self) -> None:
        """Round the weights as they are now: one pass over them, a fraction of a network call."""
        if self._copies:
            held, weights = zip(*self._copies, strict=True)
            copy_all(held, weights)


class ModulationPart(nn.Module):
    """In the place of a layer's modulation: hands out what was computed for the layer, (B, k D)."""

    conditioning: Tensor
    modulation: Tensor

    def forward(self, conditioning: Tensor) -> Tensor:
        """Return the layer's modulation by the conditioning, (B, D), which is that of all layers."""
        assert conditioning is self.conditioning, "layers with a conditioning of their own"
        return self.modulation


def modulated_modules(backbone: nn.Module) -> list[nn.Module]:
    """Return the modules whose `modulation` is a SiLU and a linear layer of float32."""
    return [
        module
        for module in backbone.modules()
        if isinstance(modulation := getattr(module, "modulation", None), nn.Sequential)
        and [type(layer) for layer in modulation] == [nn.SiLU, nn.Linear]
        and _modulation_product(module).weight.dtype == torch.float32
    ]


def _modulation_product(module: nn.Module) -> nn.Linear:
    return cast("nn.Sequential", module.modulation)[1]  # type: ignore[return-value]


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]
