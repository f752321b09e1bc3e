"""A backbone replayed as a CUDA graph: at small batches the time goes into launching kernels, and a graph saves it."""

import copy
from typing import Any, NamedTuple

import torch
from torch import Tensor

from zigma_pl.backbones.base import Backbone

NUM_WARMUP_CALLS = 3


class _Capture(NamedTuple):
    graph: torch.cuda.CUDAGraph
    inputs: tuple[Tensor | None, ...]
    output: Tensor


class GraphedBackbone:
    """Calls like the backbone it is given; without gradients on a CUDA device it captures once and then replays.

    One graph is captured for each combination of input shapes and dtypes, and captured again when the parameters have
    moved in memory; changing their values in place, as averaging does, needs no new capture. On other devices, and
    where gradients are wanted, the backbone itself is called.
    """

    def __init__(self, backbone: Backbone) -> None:
        self.backbone = backbone
        self.has_null_condition = backbone.has_null_condition
        self._captures: dict[tuple[Any, ...], _Capture] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> "GraphedBackbone":
        """Go with the copied backbone, whose parameters lie elsewhere, and capture anew."""
        return GraphedBackbone(copy.deepcopy(self.backbone, memo))

    def __call__(
        self,
        x_t: Tensor,
        t: Tensor,
        condition: Tensor | None = None,
        caption_mask: Tensor | None = None,
        condition_dropped: Tensor | None = None,
    ) -> Tensor:
        """Predict (B, C, H, W); see Backbone.forward for the arguments. The result is the caller's own."""
        inputs = (x_t, t, condition, caption_mask, condition_dropped)
        if not x_t.is_cuda or torch.is_grad_enabled():
            return self.backbone(*inputs)
        key = self._key(inputs)
        if key not in self._captures:
            self._captures[key] = self._capture(inputs)
        capture = self._captures[key]
        for static, given in zip(capture.inputs, inputs, strict=True):
            if static is not None:
                assert given is not None
                static.copy_(given)
        capture.graph.replay()
        return capture.output.clone()

    def _key(self, inputs: tuple[Tensor | None, ...]) -> tuple[Any, ...]:
        shapes = tuple(None if tensor is None else (tuple(tensor.shape), tensor.dtype) for tensor in inputs)
        autocast = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else None
        where = next(self.backbone.parameters()).data_ptr()
        return (*shapes, autocast, torch.is_inference_mode_enabled(), where)

    def _capture(self, inputs: tuple[Tensor | None, ...]) -> _Capture:
        static = tuple(None if tensor is None else tensor.clone() for tensor in inputs)
        # Casts of the weights that autocast remembers would be freed while the graph still reads them.
        dtype = torch.get_autocast_dtype("cuda")
        with torch.autocast("cuda", dtype, enabled=torch.is_autocast_enabled("cuda"), cache_enabled=False):
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(NUM_WARMUP_CALLS):
                    self.backbone(*static)
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                output = self.backbone(*static)
        return _Capture(graph, static, output)
