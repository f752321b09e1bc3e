"""A backbone whose training step is replayed: the host may take longer to launch kernels than the GPU to run them."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from zigma_pl.core.batch import Conditions
from zigma_pl.core.torch_private import has_forward_hooks
from zigma_pl.models.backbones.base import Backbone
from zigma_pl.runtime.cuda_graphs import (
    Inputs,
    addresses,
    autocast_dtype,
    fill,
    lasting_autocast,
    record,
    signature,
    warm_up,
)


class GraphedTraining:
    """Calls like the backbone it is given; in training on a CUDA device it replays the two passes as CUDA graphs.

    They are recorded at the first call, for its shapes and dtypes, and anew when parameters have moved in memory. The
    gradients are those of the parameters alone, and every call's backward pass has to come before the next call.
    The backbone itself is called on other devices, without gradients, in evaluation, with inputs of other shapes, and
    while something watches it through hooks, which a replay would not call.

    Args:
        backbone: the network. Nothing in it may wait for the device.
    """

    device_type = "cuda"

    def __init__(self, backbone: Backbone) -> None:
        self.backbone = backbone
        self._recording: _Recording | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> "GraphedTraining":
        """Go with the copied backbone, whose parameters lie elsewhere, and record anew."""
        return type(self)(copy.deepcopy(self.backbone, memo))

    def __call__(
        self,
        x_t: Tensor,
        t: Tensor,
        conditions: Conditions | None = None,
        dropped: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """Predict (B, C, H, W); see Backbone.forward for the arguments."""
        inputs = Inputs.of(x_t, t, conditions, dropped)
        if not self._is_training_on(x_t.device):
            return self.backbone(*inputs)
        dtype = autocast_dtype(self.device_type)
        if self._recording is None or not self._recording.is_of(self.backbone):
            self._recording = None  # its memory first
            self._recording = _Recording(self.backbone, inputs, dtype, self.device_type)
        if not self._recording.takes(inputs, dtype):
            return self.backbone(*inputs)
        return _Replay.apply(self._recording, inputs, *self._recording.parameters)

    def _is_training_on(self, device: torch.device) -> bool:
        trains = self.backbone.training and torch.is_grad_enabled()
        return trains and device.type == self.device_type and not has_forward_hooks(self.backbone)


class _Recording:
    """Both passes of a backbone at one batch size."""

    def __init__(self, backbone: Backbone, inputs: Inputs, dtype: torch.dtype | None, device_type: str) -> None:
        self.parameters = [parameter for parameter in backbone.parameters() if parameter.requires_grad]
        self.num_forward_passes = 0
        self._addresses, self._signature = addresses(backbone), signature(inputs, dtype)
        self._inputs = inputs.copies()

        def forward() -> tuple[Tensor, ...]:
            with lasting_autocast(device_type, dtype):
                self._output = backbone(*self._inputs)
            return (self._output,)

        def backward() -> tuple[Tensor, ...]:
            return torch.autograd.grad(self._output, self.parameters, self._doutput)

        def both() -> None:
            forward()
            self._doutput = torch.zeros_like(self._output)
            backward()

        warm_up(both)
        del self._output
        passes = record(forward, backward)
        (self._replay_forward, (prediction,)), (self._replay_backward, self._gradients) = passes
        # Autograd's graph is let go each time: while it lives, gradients are summed in the stream that it was made in.
        self._prediction = prediction.detach()
        del self._output

    def is_of(self, backbone: Backbone) -> bool:
        """Whether the backbone's parameters and buffers still lie where they lay."""
        return self._addresses == addresses(backbone)

    def takes(self, inputs: Inputs, dtype: torch.dtype | None) -> bool:
        """Whether these are inputs of the shapes and dtypes that were recorded, under the same autocast."""
        return self._signature == signature(inputs, dtype)

    def forward(self, inputs: Inputs) -> Tensor:
        """Return the prediction, the caller's own."""
        self._keep_gradients()
        fill(self._inputs, inputs)
        self._replay_forward()
        self.num_forward_passes += 1
        return self._prediction.detach().clone()

    def backward(self, doutput: Tensor) -> list[Tensor]:
        """Return the gradients of the parameters, in memory that the next forward pass may write to."""
        self._doutput.copy_(doutput)
        self._replay_backward()
        return [gradient.detach() for gradient in self._gradients]

    def _keep_gradients(self) -> None:
        """Copy gradients of the micro-batch before, which are to be added to, where autograd took them as they were."""
        for parameter, gradient in zip(self.parameters, self._gradients, strict=True):
            if parameter.grad is not None and parameter.grad.data_ptr() == gradient.data_ptr():
                parameter.grad = parameter.grad.clone()


class _Replay(torch.autograd.Function):
    """A recording as a function of the parameters."""

    @staticmethod
    def forward(ctx: Any, recording: _Recording, inputs: Inputs, *parameters: Tensor) -> Tensor:
        prediction = recording.forward(inputs)
        ctx.recording, ctx.number = recording, recording.num_forward_passes
        return prediction

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, doutput: Tensor) -> tuple[Tensor | None, ...]:
        assert ctx.number == ctx.recording.num_forward_passes, "another forward pass came before the backward pass"
        return None, None, *ctx.recording.backward(doutput)
