"""Coloured discs, squares and triangles, drawn on the fly."""

import numpy as np
from PIL import Image, ImageDraw

from zigma_pl.data import ImageDataModule, ImageDataset, ImageItem, Split

SPLITS = ("train", "validation", "test")


class ShapeImages(ImageDataset):
    """One split; an image depends only on the split and its index."""

    def __init__(self, split: Split, num_images: int, side_px: int) -> None:
        self.split, self.num_images, self.side_px = split, num_images, side_px

    def __len__(self) -> int:
        return self.num_images

    def __getitem__(self, index: int) -> ImageItem:
        random = np.random.default_rng([SPLITS.index(self.split), index])
        image = Image.new("RGB", (self.side_px, self.side_px), "black")
        radius = self.side_px * random.uniform(0.2, 0.4)
        circle = (*random.uniform(radius, self.side_px - radius, size=2), radius)
        colour = tuple(random.integers(80, 256, size=3).tolist())
        class_id, draw = index % 3, ImageDraw.Draw(image)
        if class_id == 0:
            draw.circle(circle[:2], radius, fill=colour)
        else:
            draw.regular_polygon(circle, n_sides=4 if class_id == 1 else 3, fill=colour)
        return ImageItem(image, class_id=class_id)


class Shapes(ImageDataModule):
    """Shapes with their class as condition.

    Args:
        num_images: training images; validation and test have a fifth of it each.
        image_size_px: side of the images.
        options: those of `ImageDataModule`, such as batch_size.
    """

    num_classes = 3
    class_names = ("disc", "square", "triangle")

    def __init__(self, num_images: int = 3000, image_size_px: int = 16, **options) -> None:
        super().__init__(image_size_px=image_size_px, **options)
        self.num_images = num_images

    def load_split(self, split: Split) -> ShapeImages:
        """Open one split."""
        num_images = self.num_images if split == "train" else self.num_images // 5
        return ShapeImages(split, num_images, 4 * self.image_size_px)
