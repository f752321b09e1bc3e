"""scikit-learn's handwritten digits: 1,797 grey 8 x 8 images in ten classes; part of the package, no download."""

from functools import lru_cache
from typing import Any, Literal

import numpy as np
from PIL import Image

from zigma_pl.data.base import ImageDataModule, Split
from zigma_pl.data.images import ImageDataset, ImageItem

_SPLIT_SEED = 0  # the split is fixed, and must not depend on the seed of a run


class DigitImages(ImageDataset):
    """Grey 8 x 8 digits. `pixels` (num_images, 8, 8) uint8, `labels` (num_images,) in 0..9."""

    def __init__(self, pixels: np.ndarray, labels: np.ndarray, with_classes: bool = True) -> None:
        self.pixels = pixels
        self.labels = labels
        self.with_classes = with_classes

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> ImageItem:
        class_id = int(self.labels[index]) if self.with_classes else None
        return ImageItem(Image.fromarray(self.pixels[index]), class_id=class_id)


class Digits(ImageDataModule):
    """Handwritten digits, 1 x 8 x 8, in pixel space, with or without the class as condition.

    The split is fixed and stratified: each class is shuffled once, independent of `seed`; of every ten images the first
    is for validation, the sixth for testing, and the other eight for training (185, 179 and 1,433 images).

    Args:
        batch_size: images per step and process.
        num_workers: worker processes; the default, 0, is fastest for such small images.
        seed: seed of the training order.
        cache: folder written by `python -m zigma_pl prepare digits`, read instead of the package's data.
        num_predict_samples: number of samples that `predict` generates; sample i is of class i modulo 10.
        condition: "class" or "none".
    """

    image_channels = 1

    def __init__(
        self,
        batch_size: int = 64,
        num_workers: int = 0,
        seed: int = 0,
        cache: str | None = None,
        num_predict_samples: int = 100,
        condition: Literal["class", "none"] = "class",
    ) -> None:
        super().__init__(
            batch_size=batch_size,
            num_workers=num_workers,
            seed=seed,
            image_size_px=8,
            cache=cache,
            num_predict_samples=num_predict_samples,
        )
        self.conditioned_on = condition
        self.num_classes = 10 if condition == "class" else None
        self.class_names = None if self.num_classes is None else list(map(str, range(self.num_classes)))

    def described(self) -> dict[str, Any]:
        """Return, as plain values, everything that determines the items of a split and their content."""
        return {**super().described(), "condition": self.conditioned_on}

    def load_split(self, split: Split) -> DigitImages:
        """Return the digits of one split, in the package's order."""
        pixels, labels = load_all_digits()
        rank_in_class = shuffled_rank_in_class(labels) % 10
        chosen = {"validation": rank_in_class == 0, "test": rank_in_class == 5}.get(split, rank_in_class % 5 != 0)
        return DigitImages(pixels[chosen], labels[chosen], self.conditioned_on == "class")


@lru_cache(maxsize=1)
def load_all_digits() -> tuple[np.ndarray, np.ndarray]:
    """Return all pixels (1797, 8, 8) uint8, rescaled from 0..16 to 0..255, and labels (1797,) int64."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    return np.rint(digits.images * (255 / 16)).astype(np.uint8), digits.target.astype(np.int64)


def shuffled_rank_in_class(labels: np.ndarray) -> np.ndarray:
    """Return each image's position in the shuffled list of its class, (num_images,)."""
    rank = np.empty(len(labels), dtype=np.int64)
    generator = np.random.default_rng(_SPLIT_SEED)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        rank[members] = generator.permutation(len(members))
    return rank
