"""The source of a user's package with a custom class of each kind, to be written to a folder on the path."""

PARTS = """
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import nn

from zigma_pl.backbones import Backbone, ZigMa
from zigma_pl.conditioners import ClassLabel, Sizes
from zigma_pl.data.base import ImageDataModule
from zigma_pl.data.images import ImageDataset, ImageItem
from zigma_pl.encoders.text import TextEncoder
from zigma_pl.interpolant import Objective
from zigma_pl.mixers import Mixer, MixerOptions
from zigma_pl.samplers import Guidance, Sampler
from zigma_pl.scan import Scheme


class WideZigMa(ZigMa):
    def __init__(self, factor: int, **options):
        super().__init__(width=8 * factor, depth=2, patch_size=2, **options)


class Convolutions(Backbone):
    def __init__(self, in_channels: int, side: int, taps: tuple[int, ...] = (3,), num_classes: int | None = None):
        super().__init__((in_channels, side, side))
        sizes = Sizes(1, self.latent_shape, num_classes, None)
        conditioners = {} if num_classes is None else {"class": ClassLabel()}
        self.conditioners = nn.ModuleDict({name: options.build(sizes) for name, options in conditioners.items()})
        self.layers = nn.Sequential(*(nn.Conv2d(in_channels, in_channels, n, padding=n // 2) for n in taps))

    def forward(self, x_t, t, conditions=None, dropped=None):
        shift = t
        for entry in self.embed_conditions(conditions, dropped, x_t):
            shift = shift + entry.modulation[:, 0]
        return self.layers(x_t) + shift[:, None, None, None]


class Leap(Sampler):
    def __init__(self, num_steps: int = 2, length: float = 1.0):
        self.n, self.l = num_steps, length

    def integrate(self, predictor, x_t, generators):
        for step in range(self.n):
            x_t = x_t - self.l / self.n * predictor(x_t, 1 - step / self.n).velocity
        return x_t


class Doubled(Objective):
    def __init__(self, factor: float = 2.0, **options):
        super().__init__(**options)
        self._factor = factor

    def loss_weight(self, t):
        return self._factor * super().loss_weight(t)


@dataclass(frozen=True)
class Mild(Guidance):
    mildness: float = 0.5


class LetterEncoder(TextEncoder):
    def __init__(self, alphabet: str, length: int = 4):
        self.alphabet, self.dim, self.max_tokens = alphabet, len(alphabet), length

    def __call__(self, captions, device="cpu"):
        features = torch.zeros(len(captions), self.max_tokens, self.dim)
        for row, caption in enumerate(captions):
            for place, letter in enumerate(caption[: self.max_tokens]):
                features[row, place, self.alphabet.find(letter)] = 1.0
        return features.to(device), torch.ones(features.shape[:2], dtype=torch.bool, device=device)

    def fingerprint(self):
        return {"name": "letters", "alphabet": self.alphabet, "length": self.max_tokens}


class Halved(Mixer):
    takes_rows_in_visit_order = True

    def __init__(self, width: int, share: float):
        super().__init__()
        self.share, self.linear = share, nn.Linear(width, width)

    def forward(self, tokens, visit):
        return self.share * self.linear(tokens.cumsum(1))


@dataclass(frozen=True)
class Halving(MixerOptions):
    share: float = 0.5

    def build(self, width: int) -> Halved:
        return Halved(width, self.share)


class Backwards(Scheme):
    def __init__(self, offset: int = 0):
        self.by = offset

    def order(self, index, height, width, num_frames=None):
        return np.roll(np.arange(height * width)[::-1], index + self.by)


class Shapes(ImageDataset):
    def __init__(self, corner):
        self.corner = corner

    def __len__(self):
        return 6

    def __getitem__(self, index):
        picture = Image.new("L", (8, 8), 40 * index)
        picture.putpixel((7, 7) if self.corner == "low" else (0, 0), 255)
        return ImageItem(picture, class_id=index % 2)


class ShapeData(ImageDataModule):
    num_classes = 2
    class_names = ("circle", "triangle")
    image_channels = 1

    def __init__(self, corner: str = "low", **options):
        super().__init__(**{"image_size_px": 8, "batch_size": 2, **options})
        self._where = corner

    def load_split(self, split):
        return Shapes(self._where)
"""
