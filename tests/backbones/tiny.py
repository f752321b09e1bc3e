"""Tiny backbones and inputs for the tests of this folder."""

from contextlib import contextmanager

import pytest
import torch

from zigma_pl.backbones import DiT, ParallelMamba, UViT, VisionMamba, ZigMa
from zigma_pl.core.batch import Condition
from zigma_pl.models.mixers.mamba import MambaMixer, ScanDirection
from zigma_pl.scan.schedule import ScanConfig

CLASSES = Condition(torch.tensor([0, 3, 1]))
CAPTIONS = Condition(torch.randn(3, 7, 5, generator=torch.Generator().manual_seed(2)))
BACKBONES = {backbone.__name__: backbone for backbone in (ZigMa, VisionMamba, ParallelMamba, DiT, UViT)}
CONDITIONS = {
    "none": ({}, {}),
    "classes": ({"num_classes": 4}, {"class": CLASSES}),
    "captions": ({"caption_dim": 5}, {"caption": CAPTIONS}),
    "both": ({"num_classes": 4, "caption_dim": 5}, {"class": CLASSES, "caption": CAPTIONS}),
}


def build(backbone_class, randomise=True, **options):
    """Build a backbone of width 16 for latents (2, 4, 6) in patches of 2; by default without zero parameters.

    ParallelMamba has two orders instead of eight, which take four times as long.
    """
    torch.manual_seed(0)
    defaults = {"in_channels": 2, "latent_height": 4, "latent_width": 6, "patch_size": 2, "width": 16, "depth": 3}
    if backbone_class is ParallelMamba:
        defaults["scan"] = ScanConfig(num_orders=2)
    backbone = backbone_class(**(defaults | options))
    if randomise:
        for parameter in backbone.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    return backbone


@contextmanager
def without_values():
    """Build modules on the meta device to count their parameters, which therefore need no initial values."""
    with torch.device("meta"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.Linear, "reset_parameters", lambda self: None)
        patch.setattr(ScanDirection, "_initialise_step_sizes", lambda self: None)
        patch.setattr(MambaMixer, "sort_channels", lambda self: None)
        yield


def draw(batch_size=3, latent_frames=None):
    """Draw x_t, for a video if there are frames, and t."""
    generator = torch.Generator().manual_seed(1)
    frames = () if latent_frames is None else (latent_frames,)
    return torch.randn(batch_size, *frames, 2, 4, 6, generator=generator), torch.rand(batch_size, generator=generator)


def part(conditions, rows):
    """Return some rows of conditions."""
    return {
        name: Condition(values[rows], None if mask is None else mask[rows])
        for name, (values, mask) in conditions.items()
    }


def masked(conditions, seed=0):
    """Return conditions with a mask of the captions."""
    masks = {"caption": torch.arange(7) < torch.tensor([[7], [3], [1]]).roll(seed, 0)}
    return {name: Condition(values, masks.get(name)) for name, (values, _) in conditions.items()}


def reached(backbone, token, conditions=None):
    """Perturb one token (of 2 x 3 per frame) and return the tokens whose prediction changes."""
    frame, place = divmod(token, 6)
    row, column = divmod(place, 3)
    of_clip = len(backbone.latent_shape) == 4
    x, t = draw(1, latent_frames=backbone.latent_shape[0] if of_clip else None)
    changed = x.clone()
    picture = changed[:, frame] if of_clip else changed
    picture[..., 2 * row : 2 * row + 2, 2 * column : 2 * column + 2] += 1.0
    with torch.no_grad():
        moved = (backbone(changed, t, conditions) - backbone(x, t, conditions)).abs()[0].amax(-3)  # (H, W) or (F, H, W)
    tokens = moved.reshape(-1, 2, 2, 3, 2).amax((2, 4)).flatten()
    return set(tokens.nonzero().flatten().tolist())
