"""Calls of a backbone on a CPU in threads, each of which computes some rows of the batch.

PyTorch's own threads work on one operation at a time and wait for each other after it, which makes a call slower than
with one thread if the operations are short or other programs use the cores. Threads with their own rows meet only once
per call. PyTorch releases Python's global lock during an operation, so they run at the same time.

Axes: B batch.
"""

from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from zigma_pl.models.backbones.base import Backbone
from zigma_pl.runtime.cuda_graphs import Inputs
from zigma_pl.runtime.sharding import is_sharded

MIN_ROWS = 2  # per thread; with fewer rows, threads would wait for Python's global lock


def call_in_threads(backbone: Backbone, inputs: Inputs) -> Tensor:
    """Return the output of a backbone without gradients, as in a single call except for rounding.

    The number of threads is PyTorch's, `torch.get_num_threads()`. If there are more than parts of the batch, each part
    uses several. A backbone with sharded parameters is called once, since all processes must communicate in the same
    order. Forward hooks are called for each part, in its thread.
    """
    num_threads = torch.get_num_threads()
    num_parts = min(num_threads, len(inputs.x_t) // MIN_ROWS)
    if num_parts < 2 or any(map(is_sharded, backbone.parameters())):
        return backbone(*inputs)
    # Modes of PyTorch belong to a thread, but its number of threads applies to all new ones.
    is_inference, is_autocast = torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")
    autocast_dtype = torch.get_autocast_dtype("cpu")

    def call(part: Inputs) -> Tensor:
        # In this order, since leaving inference mode enables gradients.
        with torch.inference_mode(is_inference), torch.no_grad(), torch.autocast("cpu", autocast_dtype, is_autocast):
            return backbone(*part)

    first, *others = inputs.split(num_parts)
    torch.set_num_threads(num_threads // num_parts)
    try:
        with ThreadPoolExecutor(len(others)) as pool:
            pending = [pool.submit(call, part) for part in others]
            return torch.cat([call(first), *(part.result() for part in pending)])
    finally:
        torch.set_num_threads(num_threads)
