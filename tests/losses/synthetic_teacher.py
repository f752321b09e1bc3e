"""A teacher that needs no weights: a random convolution of 2 x 2 pixels."""

import torch
from torch import nn

from zigma_pl.losses import Teacher


class RandomPatches(Teacher):
    """Random features of patches.

    Args:
        dim: number of features.
        bfloat16: see `Teacher`.
    """

    def __init__(self, dim: int = 6, bfloat16: bool = False) -> None:
        self.dim, self.bfloat16 = dim, bfloat16

    def load(self):
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, self.dim, 2, stride=2), nn.BatchNorm2d(self.dim))

    def features(self, images):
        return self.network(images / 127.5 - 1)
