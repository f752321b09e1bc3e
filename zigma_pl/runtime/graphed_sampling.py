"""A backbone that is replayed as a CUDA graph in sampling, where launching kernels dominates at small batch sizes."""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from zigma_pl.core.batch import Conditions
from zigma_pl.models.backbones.base import Backbone
from zigma_pl.ops.nvrtc import early_launches
from zigma_pl.runtime.cuda_graphs import (
    Inputs,
    autocast_dtype,
    fill,
    record,
    signature,
    uncached_autocast,
    warm_up,
)
from zigma_pl.runtime.row_threads import call_in_threads
from zigma_pl.runtime.sampling_copy import SamplingCopy


class _Capture(NamedTuple):
    inputs: Inputs
    output: Tensor
    replay: Callable[[], None]


class GraphedBackbone:
    """A callable like its backbone; without gradients on a CUDA device, it replays CUDA graphs.

    One graph is captured for each combination of input shapes and dtypes, and again if parameters have moved in memory.
    Under autocast, the graph reads 16-bit copies of the weights of matrix products (`SamplingCopy`). Every call updates
    these copies and checks the addresses of the parameters; within `fixed_weights`, this is done only once at its
    start. Changes of weights cannot be detected reliably: PyTorch's version counters miss the fused AdamW and writes
    through `.data`, such as those of averaging callbacks.

    On a CPU without gradients, the rows of the batch are divided among threads (`row_threads`), unless the backbone is
    compiled. On other devices, and with gradients, the backbone itself is called.

    Args:
        backbone: the network.
        compile_backbone: compile the regions of the captured network with torch.compile.
    """

    device_type = "cuda"

    def __init__(self, backbone: Backbone, compile_backbone: bool = False) -> None:
        self.backbone = backbone
        self.compile_backbone = compile_backbone
        self.droppable_conditions = backbone.droppable_conditions
        self._copies: dict[torch.dtype | None, SamplingCopy] = {}
        self._captures: dict[tuple[Any, ...], _Capture] = {}
        self._weights_are_fixed = False

    def __deepcopy__(self, memo: dict[int, Any]) -> "GraphedBackbone":
        """Copy the backbone, and capture new graphs for the copy."""
        return type(self)(copy.deepcopy(self.backbone, memo), self.compile_backbone)

    @contextmanager
    def fixed_weights(self) -> Iterator[None]:
        """Skip updates of the weight copies in the block, in which the caller must not change the weights."""
        for dtype in tuple(self._copies):
            self._update_copy(dtype)
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
        """Predict (B, C, H, W), in a new tensor; see `Backbone.forward` for the arguments."""
        inputs = Inputs.of(x_t, t, conditions, dropped)
        if x_t.device.type != self.device_type or torch.is_grad_enabled():
            in_threads = x_t.device.type == "cpu" and not torch.is_grad_enabled() and not self.compile_backbone
            return call_in_threads(self.backbone, inputs) if in_threads else self.backbone(*inputs)
        # Tensors that are created here can be used inside and outside of inference mode.
        with torch.inference_mode(False), torch.no_grad():
            capture = self._capture_for(inputs)
            fill(capture.inputs, inputs)
            capture.replay()
        return capture.output.clone()

    def _capture_for(self, inputs: Inputs) -> _Capture:
        dtype = autocast_dtype(self.device_type)
        sampling_copy = self._copy_for(dtype)
        key = signature(inputs, dtype)
        if key not in self._captures:
            self._captures[key] = self._capture(sampling_copy.network, inputs, dtype)
        return self._captures[key]

    def _copy_for(self, dtype: torch.dtype | None) -> SamplingCopy:
        if not self._weights_are_fixed:
            self._update_copy(dtype)
        if dtype not in self._copies:
            self._copies[dtype] = SamplingCopy(self.backbone, dtype, self.compile_backbone)
        return self._copies[dtype]

    def _update_copy(self, dtype: torch.dtype | None) -> None:
        """Update the weights of a copy; discard all copies and graphs if parameters moved or layers have changed."""
        sampling_copy = self._copies.get(dtype)
        if sampling_copy is None:
            return
        if not sampling_copy.matches(self.backbone) or not sampling_copy.refresh():
            self._copies.clear()
            self._captures.clear()

    def _capture(self, network: Backbone, inputs: Inputs, dtype: torch.dtype | None) -> _Capture:
        static = inputs.copies()

        def call() -> tuple[Tensor, ...]:
            return (network(*static),)

        with uncached_autocast(self.device_type, dtype):
            warm_up(call)
            with early_launches():
                ((replay, (output,)),) = record(call)
        return _Capture(static, output, replay)
