"""Operations of training on one image, and the peak performance of GPUs."""

import logging
import math
import re

import torch
from lightning.fabric.utilities.throughput import get_available_flops

from zigma_pl.core.errors import UserError
from zigma_pl.models.backbones.base import Backbone
from zigma_pl.models.backbones.token_backbone import TokenBackbone

log = logging.getLogger(__name__)

# Peak of dense bfloat16 matrix products with float32 accumulation, in 10^12 operations per second, from the vendors'
# data sheets, for GPUs that are missing from Lightning's table or have its peak for sparse products or for CUDA cores.
# Names are matched as whole words in the device name; the first match is used.
PEAK_TFLOPS = {
    "B200": 2250.0,
    "GH200": 989.4,
    "H200 NVL": 835.0,
    "H200": 989.4,
    "H100 NVL": 835.0,
    "L40S": 362.0,
    "L40": 181.0,
    "A40": 149.7,
    "A30": 165.0,
    "A10": 125.0,
    "RTX 6000 Ada": 364.2,
    "RTX A6000": 154.8,
    "RTX 5090": 209.5,
    "RTX 4090": 165.2,
    "RTX 3090": 71.0,
}
_IN_LIGHTNINGS_TABLE = re.compile(r"\b(H100|A100|L4)\b")
_OTHER_CHIP = re.compile(r"\b(Laptop|MIG|Ti|D)\b")  # variants of a known GPU with another peak


def peak_flops_per_second(device: torch.device) -> float | None:
    """Return the dense bfloat16 peak of a GPU whose name is known, None for other devices."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    if _OTHER_CHIP.search(name):
        return None
    peak_tflops = next((peak for known, peak in PEAK_TFLOPS.items() if re.search(rf"\b{known}\b", name)), None)
    if peak_tflops is not None:
        return peak_tflops * 1e12
    return get_available_flops(device, torch.bfloat16) if _IN_LIGHTNINGS_TABLE.search(name) else None


def training_flops_per_image(backbone: Backbone, num_caption_tokens: int | None = None) -> float | None:
    """Return three times the operations of a forward pass, the usual estimate; None if an op is unknown.

    Args:
        backbone: the network; its operations are counted from its configuration.
        num_caption_tokens: T of the training captions; None for CLIP's.
    """
    # Imported here, as it builds tables of ops.
    from zigma_pl.models.flops import NUM_CAPTION_TOKENS, count_flops

    try:
        return 3 * count_flops(backbone, num_caption_tokens=num_caption_tokens or NUM_CAPTION_TOKENS).total
    except UserError as error:  # a custom backbone, which can be trained without this number
        log.warning(f"no train/model_flops_utilization: {error}")
        return None


def tokens_per_image(backbone: Backbone) -> int | None:
    """Return the number of patches of an image, or of all frames of a clip; None for a backbone without patches."""
    if not isinstance(backbone, TokenBackbone):
        return None
    return math.prod(backbone.grid) * (backbone.num_frames or 1)
