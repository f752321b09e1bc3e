"""Features of a small convolutional network with random weights, which needs no download."""

import torch
from torch import Tensor, nn

from zigma_pl.metrics import FeatureExtractor


class RandomConvolutions(FeatureExtractor):
    """Channel means after two convolutions.

    Args:
        dim: number of features.
        seed: seed of the weights.
    """

    def __init__(self, dim: int = 64, seed: int = 0) -> None:
        self.dim, self.seed = dim, seed

    def load(self) -> nn.Module:
        """Build the network."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return nn.Sequential(
                *(nn.Conv2d(3, self.dim, kernel_size=3, padding=1), nn.ReLU()),
                *(nn.Conv2d(self.dim, self.dim, kernel_size=3, stride=2, padding=1), nn.ReLU()),
                *(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
            )

    def features(self, images: Tensor) -> Tensor:
        """Return features (B, dim) of images (B, 3, height, width) uint8."""
        return self.network(images / 127.5 - 1)
