"""A backbone whose passes are replayed as CUDA graphs in training, as launches may take longer than the kernels."""

import copy
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.func import functional_call

from zigma_pl.core.batch import Conditions
from zigma_pl.core.torch_private import has_forward_hooks
from zigma_pl.models.backbones.base import Backbone
from zigma_pl.models.taps import tapped
from zigma_pl.runtime.cuda_graphs import (
    Inputs,
    autocast_dtype,
    fill,
    record,
    signature,
    uncached_autocast,
    warm_up,
)
from zigma_pl.runtime.joined_layers import joined_layers
from zigma_pl.runtime.recorded_leaves import RecordedLeaves

log = logging.getLogger(__name__)


class GraphedTraining:
    """A callable like its backbone; in training on a CUDA device, it replays both passes as CUDA graphs.

    The passes are recorded at the first call, for its shapes and dtypes, and again if other layers are tapped, other
    parameters are trained, or parameters have moved in memory. Only parameters receive gradients, and the backward
    pass of each call must run before the next call.

    Under autocast, the modulations of all layers are computed in one matrix product (`joined_layers`), so that the
    results differ from those of the backbone by rounding to 16 bits: gradients of the conditions, for example, are
    rounded once instead of once per layer. Otherwise they are the same.

    The backbone itself is called on other devices, without gradients, in evaluation mode, for inputs of other shapes,
    and if it has forward hooks, which a replay would not call.

    Args:
        backbone: the network, which must not synchronise with the device.
        required: raise the error of a network that cannot be recorded. Otherwise it is logged, and the backbone itself
            is called from then on.
    """

    device_type = "cuda"

    def __init__(self, backbone: Backbone, required: bool = True) -> None:
        self.backbone = backbone
        self.required = required
        self._recording: _Recording | None = None
        self._has_failed = False
        self._layers: tuple[str, ...] = ()
        self._features: dict[str, Tensor] = {}

    @contextmanager
    def tapped(self, layers: Sequence[str]) -> Iterator[dict[str, Tensor]]:
        """Collect the outputs of the named layers in calls within the block; see `zigma_pl.models.taps.tapped`."""
        self._layers, self._features = tuple(layers), {}
        try:
            yield self._features
        finally:
            self._layers, self._features = (), {}

    def forget(self) -> None:
        """Free the recording; the next call makes a new one."""
        self._recording = None

    def __deepcopy__(self, memo: dict[int, Any]) -> "GraphedTraining":
        """Copy the backbone, and record new graphs for the copy."""
        return type(self)(copy.deepcopy(self.backbone, memo), self.required)

    def __call__(
        self,
        x_t: Tensor,
        t: Tensor,
        conditions: Conditions | None = None,
        dropped: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """Predict (B, C, H, W); see `Backbone.forward` for the arguments."""
        inputs = Inputs.of(x_t, t, conditions, dropped)
        if not self._is_training_on(x_t.device):
            return self._call_backbone(inputs)
        dtype = autocast_dtype(self.device_type)
        if self._recording is None or not self._recording.matches(self.backbone, self._layers):
            self.forget()  # frees its memory first
            self._recording = self._record(inputs, dtype)
        if self._recording is None or not self._recording.takes(inputs, dtype):
            return self._call_backbone(inputs)
        prediction, *features = _Replay.apply(self._recording, inputs, *self._recording.parameters)
        self._features.update(zip(self._layers, features, strict=True))
        return prediction

    def _call_backbone(self, inputs: Inputs) -> Tensor:
        with tapped(self.backbone, self._layers) as features:
            prediction: Tensor = self.backbone(*inputs)
        self._features.update(features)
        return prediction

    def _record(self, inputs: Inputs, dtype: torch.dtype | None) -> "_Recording | None":
        try:
            return _Recording(self.backbone, self._layers, inputs, dtype, self.device_type)
        except RuntimeError as error:  # such as a network that synchronises, or too little memory
            if self.required:
                raise
            self._has_failed = True
            reason = str(error).splitlines()[0]
            log.warning("model.graph_training: training steps cannot be recorded as CUDA graphs: %s", reason)
            return None

    def _is_training_on(self, device: torch.device) -> bool:
        trains = self.backbone.training and torch.is_grad_enabled() and not self._has_failed
        return trains and device.type == self.device_type and not has_forward_hooks(self.backbone)


class _Recording:
    """Recordings of both passes of a backbone for one batch size; its outputs are the prediction and tapped layers."""

    def __init__(
        self, backbone: Backbone, layers: tuple[str, ...], inputs: Inputs, dtype: torch.dtype | None, device_type: str
    ) -> None:
        self.layers = layers
        leaves = RecordedLeaves(backbone, dtype)
        self.parameters = leaves.parameters
        self.num_forward_passes = 0
        self._tensors, self._signature = _tensors(backbone), signature(inputs, dtype)
        self._inputs = inputs.copies()

        def forward() -> tuple[Tensor, ...]:
            with (
                joined_layers(backbone, leaves.renew(), dtype) as replaced,
                uncached_autocast(device_type, dtype),
                tapped(backbone, layers) as features,
            ):
                prediction = functional_call(backbone, replaced, tuple(self._inputs), tie_weights=False)
            self._outputs = (prediction, *(features[layer] for layer in layers))
            return self._outputs

        def backward() -> tuple[Tensor, ...]:
            return leaves.gradients(self._outputs, self._doutputs)

        def both() -> None:
            leaves.choose_copies(forward())
            self._doutputs = tuple(torch.zeros_like(output) for output in self._outputs)
            backward()

        warm_up(both)
        del self._outputs
        passes = record(forward, backward)
        (self._replay_forward, outputs), (self._replay_backward, self._gradients) = passes
        # The autograd graph is freed, here and after the warm-up: while it exists, gradients are accumulated on the
        # stream on which it was created.
        self._recorded_outputs = tuple(output.detach() for output in outputs)
        del self._outputs

    def matches(self, backbone: Backbone, layers: tuple[str, ...]) -> bool:
        """Return whether these layers were tapped, and the tensors of the backbone are the recorded ones.

        Parameters and buffers must be at the same addresses, and the same parameters must be trained.
        """
        return self.layers == layers and self._tensors == _tensors(backbone)

    def takes(self, inputs: Inputs, dtype: torch.dtype | None) -> bool:
        """Return whether inputs have the recorded shapes and dtypes, under the same autocast."""
        return self._signature == signature(inputs, dtype)

    def forward(self, inputs: Inputs) -> tuple[Tensor, ...]:
        """Return the prediction and the outputs of the tapped layers in new tensors."""
        self._copy_accumulated_gradients()
        fill(self._inputs, inputs)
        self._replay_forward()
        self.num_forward_passes += 1
        return tuple(output.clone() for output in self._recorded_outputs)

    def backward(self, doutputs: tuple[Tensor, ...]) -> list[Tensor]:
        """Return the gradients of the parameters, in memory that the next forward pass may overwrite."""
        for recorded, doutput in zip(self._doutputs, doutputs, strict=True):
            recorded.copy_(doutput)
        self._replay_backward()
        return [gradient.detach() for gradient in self._gradients]

    def _copy_accumulated_gradients(self) -> None:
        """Copy gradients of the previous micro-batch that are in recorded memory, so that they can be accumulated."""
        for parameter, gradient in zip(self.parameters, self._gradients, strict=True):
            if parameter.grad is not None and parameter.grad.data_ptr() == gradient.data_ptr():
                parameter.grad = parameter.grad.clone()


def _tensors(backbone: Backbone) -> list[tuple[int, bool]]:
    """Return the address of each parameter and buffer, and whether it is trained."""
    return [(tensor.data_ptr(), tensor.requires_grad) for tensor in (*backbone.parameters(), *backbone.buffers())]


class _Replay(torch.autograd.Function):
    """A recording as an autograd function of the parameters."""

    @staticmethod
    def forward(ctx: Any, recording: _Recording, inputs: Inputs, *parameters: Tensor) -> tuple[Tensor, ...]:
        outputs = recording.forward(inputs)
        ctx.recording, ctx.index = recording, recording.num_forward_passes
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *doutputs: Tensor) -> tuple[Tensor | None, ...]:
        assert ctx.index == ctx.recording.num_forward_passes, "another forward pass ran before the backward pass"
        return None, None, *ctx.recording.backward(doutputs)
