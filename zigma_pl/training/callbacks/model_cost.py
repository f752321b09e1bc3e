"""What training on one image costs, and what a GPU can do in a second."""

import logging
import math
import re

import torch
from lightning.fabric.utilities.throughput import get_available_flops

from zigma_pl.core.errors import UserError
from zigma_pl.models.backbones.base import Backbone
from zigma_pl.models.backbones.token_backbone import TokenBackbone

log = logging.getLogger(__name__)

# Dense matrix products of bfloat16 with float32 sums, in 10^12 operations a second, from the makers' data sheets, of
# cards that Lightning's table lacks, or gives the rate of sparse products or of plain lanes.
# A name is looked for, as whole words, in the one that the device gives itself; the first that is found counts.
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
_OTHER_CHIP = re.compile(r"\b(Laptop|MIG|Ti|D)\b")  # behind a known name: less or more than the whole of that chip


def peak_flops_per_second(device: torch.device) -> float | None:
    """Return the dense bfloat16 peak of a GPU that is known by name, None for any other device."""
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
    """Return three times the forward pass, the usual count of a training step; None where an op is not known.

    Args:
        backbone: counted from its configuration.
        num_caption_tokens: T of the captions it is trained on; None for as many as CLIP's.
    """
    # It builds tables of ops, which only those who count should wait for.
    from zigma_pl.models.flops import NUM_CAPTION_TOKENS, count_flops

    try:
        return 3 * count_flops(backbone, num_caption_tokens=num_caption_tokens or NUM_CAPTION_TOKENS).total
    except UserError as error:  # of somebody else's backbone; it can train without this number
        log.warning(f"no train/model_flops_utilization: {error}")
        return None


def tokens_per_image(backbone: Backbone) -> int | None:
    """Return the patches of an image, of a clip those of all frames; None for a backbone that does not cut patches."""
    if not isinstance(backbone, TokenBackbone):
        return None
    return math.prod(backbone.grid) * (backbone.num_frames or 1)
