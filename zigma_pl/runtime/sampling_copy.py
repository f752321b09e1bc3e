"""A copy of a backbone for sampling, which computes the same output with less work per call."""

import copy

import torch
from torch import Tensor, nn

from zigma_pl.core.torch_private import copy_all
from zigma_pl.models.backbones.base import Backbone
from zigma_pl.models.backbones.token_backbone import TokenBackbone
from zigma_pl.ops.rms_norm import scale_columns_of_all
from zigma_pl.runtime.compiling import compile_regions
from zigma_pl.runtime.cuda_graphs import addresses
from zigma_pl.runtime.joined_layers import join_modulations, mixer_weights, modulated_modules, modulation_product


class SamplingCopy:
    """A copy of a backbone that computes the same output with less work, without gradients and under autocast.

    The weights of linear layers are stored in the dtype of autocast, with the same rounding, instead of being cast in
    every call, and mixers get the products of their weights (`Mixer.scaled_weights`). The modulations of all layers,
    which depend only on time and conditions, are computed in one matrix product. All other parameters and buffers are
    shared with the backbone. The copied weights are not part of the backbone, so they are not saved in checkpoints.

    Args:
        backbone: the network.
        dtype: dtype of autocast; None without autocast, for which the copy shares all parameters.
        compile_backbone: compile the regions of the copy with torch.compile.
    """

    def __init__(self, backbone: Backbone, dtype: torch.dtype | None, compile_backbone: bool = False) -> None:
        self._backbone, self._dtype = backbone, dtype
        self._computed: dict[tuple[str, str], Tensor] = {}  # products of mixers' weights, see `mixer_weights`
        self._copies: list[tuple[Tensor, Tensor]] = []  # each copied weight with its source
        with torch.inference_mode(False), torch.no_grad():  # so that copies can be modified outside of inference mode
            self.network = self._shared_network() if dtype is None else self._cast_network(dtype)
        self._addresses = addresses(backbone)
        if compile_backbone:
            compile_regions(self.network)

    def _shared_network(self) -> Backbone:
        return copy.deepcopy(self._backbone, {id(tensor): tensor for tensor in _tensors(self._backbone)})

    def _cast_network(self, dtype: torch.dtype) -> Backbone:
        products = [modulation_product(module) for module in modulated_modules(self._backbone).values()]
        replaced: dict[int, Tensor] = {id(tensor): tensor for tensor in _tensors(self._backbone)}
        pairs = mixer_weights(self._backbone, dtype)
        not_copied = {id(product.weight) for product in products} | {id(matrix) for matrix, _ in pairs.values()}
        for layer in self._backbone.modules():
            if not isinstance(layer, nn.Linear) or layer.weight.dtype != torch.float32:
                continue
            # Without biases, since the scan needs the bias of its step sizes in float32.
            if id(layer.weight) not in not_copied:
                weight = nn.Parameter(layer.weight.to(dtype), requires_grad=False)
                replaced[id(layer.weight)] = weight
                self._copies.append((weight, layer.weight))
        network = copy.deepcopy(self._backbone, replaced)
        self._computed = dict(zip(pairs, scale_columns_of_all(list(pairs.values()), dtype), strict=True))
        for (path, name), tensor in self._computed.items():
            setattr(network.get_submodule(path), name, tensor)
        if products:
            assert isinstance(network, TokenBackbone)
            self._join_modulations(network, products, dtype)
        return network

    def _join_modulations(self, network: TokenBackbone, products: list[nn.Linear], dtype: torch.dtype) -> None:
        """Join the modulations of the network, with copies of the weights and biases of these linear layers."""
        sizes = [product.out_features for product in products]
        weight, bias = (
            torch.cat([getattr(product, name) for product in products]).to(dtype) for name in ("weight", "bias")
        )
        for name, joined in (("weight", weight), ("bias", bias)):
            sources = [getattr(product, name) for product in products]
            self._copies += zip(joined.split(sizes), sources, strict=True)
        join_modulations(network, weight, bias)

    def matches(self, backbone: Backbone) -> bool:
        """Return whether addresses of parameters and buffers, and the training mode, are unchanged."""
        return self._addresses == addresses(backbone) and self.network.training == backbone.training

    @torch.no_grad()
    def refresh(self) -> bool:
        """Update the copied weights from the backbone, which takes a fraction of the time of a network call.

        Returns: False if mixers do not use the same products as before, for example because a hook was registered on
            one of their layers. The copy is then out of date.
        """
        if self._copies:
            copies, sources = zip(*self._copies, strict=True)
            copy_all(copies, sources)
        if self._dtype is None:
            return True
        pairs = mixer_weights(self._backbone, self._dtype)
        if pairs.keys() != self._computed.keys():
            return False
        if pairs:
            copy_all(list(self._computed.values()), scale_columns_of_all(list(pairs.values()), self._dtype))
        return True


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]
