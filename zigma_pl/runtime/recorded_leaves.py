"""Leaves of the autograd graph of a recorded training step, in place of the parameters of the network."""

import torch
from torch import Tensor, nn

from zigma_pl.core.torch_private import cast_all, leaves_cast_once


class RecordedLeaves:
    """Tensors that replace the trained parameters of a network in recordings.

    Gradients of the parameters themselves are accumulated on the stream of the first pass as long as someone, such as
    DDP, keeps what accumulates them.

    The leaves share memory with the parameters, except for those that autocast would cast with one kernel each, such as
    the weights of linear layers. Their leaves are copies in the dtype of autocast, which `renew` makes with one kernel,
    and `gradients` casts all their gradients back with another. The results are the same.

    Args:
        network: the network.
        dtype: dtype of autocast; None without autocast, for which all leaves share memory.

    Attributes:
        parameters: the trained parameters, each once.
    """

    def __init__(self, network: nn.Module, dtype: torch.dtype | None) -> None:
        # Each module once: a layer that is used in several places would keep its leaves after `functional_call`.
        self._named = {
            name: parameter
            for path, module in network.named_modules()
            for name, parameter in module.named_parameters(path, recurse=False, remove_duplicate=False)
            if parameter.requires_grad
        }
        # Parameters too, because torch.compile would compile a module again for tensors of another class.
        self._sharing = {parameter: nn.Parameter(parameter.detach()) for parameter in self._named.values()}
        self._leaves = self._sharing
        self._copied: list[nn.Parameter] = []
        self._dtype = dtype
        self.parameters = list(self._sharing)

    def choose_copies(self, outputs: tuple[Tensor, ...]) -> None:
        """Copy parameters that autocast casts from now on, given outputs that were computed from the leaves.

        Parameters that are cast several times are not copied, since their gradients would be added in 16 bits.
        """
        cast = set(leaves_cast_once(outputs, self._dtype))
        self._copied += [parameter for parameter, leaf in self._sharing.items() if leaf in cast]

    def renew(self) -> dict[str, Tensor]:
        """Return the leaves by the names of the parameters, with new copies of the current values."""
        self._leaves = self._sharing
        if self._dtype is not None:
            copies = cast_all([parameter.detach() for parameter in self._copied], self._dtype)
            self._leaves = self._sharing | dict(zip(self._copied, map(nn.Parameter, copies), strict=True))
        return {name: self._leaves[parameter] for name, parameter in self._named.items()}

    def gradients(self, outputs: tuple[Tensor, ...], doutputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Return the gradients of the parameters, given those of outputs that were computed from the leaves.

        Frees the copies.
        """
        found = torch.autograd.grad(outputs, list(self._leaves.values()), doutputs)
        self._leaves = self._sharing
        gradients = dict(zip(self.parameters, found, strict=True))
        gradients |= zip(self._copied, cast_all([gradients[p] for p in self._copied], torch.float32), strict=True)
        return tuple(gradients.values())
