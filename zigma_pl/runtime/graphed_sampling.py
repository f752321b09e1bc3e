"""A backbone replayed as a CUDA graph: at small batches the time goes into launching kernels, and a graph saves it."""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from zigma_pl.core.batch import Conditions
from zigma_pl.models.backbones.base import Backbone
from zigma_pl.runtime.cuda_graphs import (
    Inputs,
    autocast_dtype,
    fill,
    lasting_autocast,
    record,
    signature,
    warm_up,
)
from zigma_pl.runtime.sampling_copy import SamplingTwin


class _Capture(NamedTuple):
    inputs: Inputs
    output: Tensor
    replay: Callable[[], None]


class GraphedBackbone:
    """Calls like the backbone it is given; without gradients on a CUDA device it captures once and then replays.

    One graph is captured for each combination of input shapes and dtypes, anew when parameters have moved in memory.
    Under autocast it reads 16-bit copies of the weights of matrix products (`SamplingTwin`). They are made again, and
    the parameters looked for, in every call, but within `fixed_weights` only once, where it begins. Nothing tells
    reliably that weights have changed: PyTorch's counters miss the fused AdamW, and whatever writes through `.data`, as
    averaging callbacks do.
    On other devices, and where gradients are wanted, the backbone itself is called.

    Args:
        backbone: the network.
        compile_backbone: capture its regions as torch.compile makes them.
    """

    device_type = "cuda"

    def __init__(self, backbone: Backbone, compile_backbone: bool = False) -> None:
        self.backbone = backbone
        self.compile_backbone = compile_backbone
        self.droppable_conditions = backbone.droppable_conditions
        self._twins: dict[torch.dtype | None, SamplingTwin] = {}
        self._captures: dict[tuple[Any, ...], _Capture] = {}
        self._weights_are_fixed = False

    def __deepcopy__(self, memo: dict[int, Any]) -> "GraphedBackbone":
        """Go with the copied backbone, whose parameters lie elsewhere, and capture anew."""
        return type(self)(copy.deepcopy(self.backbone, memo), self.compile_backbone)

    @contextmanager
    def fixed_weights(self) -> Iterator[None]:
        """Promise that the weights stay as they are now for a while, such as until a batch of samples is drawn."""
        for dtype in tuple(self._twins):
            self._follow_weights(dtype)
        self._weights_are_fixed = True
        try:
            yield
        finally:
            self._weights_are_fixed = False

    def __call__(
        self,
        x_t: Tensor,
        t: Tensor,
        conditions: Conditions | None = None,
        dropped: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """Predict (B, C, H, W); see Backbone.forward for the arguments. The result is the caller's own."""
        inputs = Inputs.of(x_t, t, conditions, dropped)
        if x_t.device.type != self.device_type or torch.is_grad_enabled():
            return self.backbone(*inputs)
        # What is kept may be read, and written, in inference mode and outside of it.
        with torch.inference_mode(False), torch.no_grad():
            capture = self._capture_for(inputs)
            fill(capture.inputs, inputs)
            capture.replay()
        return capture.output.clone()

    def _capture_for(self, inputs: Inputs) -> _Capture:
        dtype = autocast_dtype(self.device_type)
        twin = self._twin(dtype)
        key = signature(inputs, dtype)
        if key not in self._captures:
            self._captures[key] = self._capture(twin.network, inputs, dtype)
        return self._captures[key]

    def _twin(self, dtype: torch.dtype | None) -> SamplingTwin:
        if not self._weights_are_fixed:
            self._follow_weights(dtype)
        if dtype not in self._twins:
            self._twins[dtype] = SamplingTwin(self.backbone, dtype, self.compile_backbone)
        return self._twins[dtype]

    def _follow_weights(self, dtype: torch.dtype | None) -> None:
        """Bring a twin up to date; where the weights have moved, drop all that was captured."""
        twin = self._twins.get(dtype)
        if twin is None:
            return
        if twin.is_of(self.backbone):
            twin.refresh()
        else:
            self._twins.clear()
            self._captures.clear()

    def _capture(self, network: Backbone, inputs: Inputs, dtype: torch.dtype | None) -> _Capture:
        static = inputs.copies()

        def call() -> tuple[Tensor, ...]:
            return (network(*static),)

        with lasting_autocast(self.device_type, dtype):
            warm_up(call)
            ((replay, (output,)),) = record(call)
        return _Capture(static, output, replay)
