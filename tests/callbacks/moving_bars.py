"""A tiny data set of clips, made in memory."""

import torch

from zigma_pl.data.base import ImageDataModule
from zigma_pl.data.images import PixelDataset, PixelItem


class BarClips(PixelDataset):
    """Clips of a bar that begins in the row of the class and goes down: (num_frames, 3, size, size)."""

    def __init__(self, num_frames, size_px):
        self.num_frames, self.size_px = num_frames, size_px

    def __len__(self):
        return 6

    def __getitem__(self, index):
        pixels = torch.zeros(self.num_frames, 3, self.size_px, self.size_px, dtype=torch.uint8)
        for frame in range(self.num_frames):
            pixels[frame, :, (index + frame) % self.size_px] = 255
        return PixelItem(pixels, class_id=index % 2)


class MovingBars(ImageDataModule):
    """Clips of 3 frames of 8 x 8 pixels, in two classes."""

    num_classes = 2
    num_frames = 3

    def __init__(self, **options):
        super().__init__(**({"batch_size": 4, "image_size_px": 8} | options))

    def load_split(self, split):
        raise AssertionError("clips are no pictures")

    def pixel_items(self, split):
        return BarClips(self.num_frames, self.image_size_px)
