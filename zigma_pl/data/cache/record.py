"""The stored form of one image or clip.

Axes: F frames (clips only), C latent channels, H W latent grid.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class PreparedRecord:
    """One entry of a prepared split.

    index: index in the split, from 0; also the sample id in evaluation.
    pixels: ([F,] 3 or 1, height, width) uint8 in pixel space (autoencoder "identity"), else None.
    moments: (2, [F,] 2 C, H, W) mean and standard deviation of the posterior, before scale and shift, for the image
        and its mirror image; None in pixel space.
    class_id: class in [0, num_classes), or None.
    captions: the captions, None if the data set has none.
    caption_features: (num_tokens, d) for each caption, without padding; None if the data set has no captions.
    """

    index: int
    pixels: np.ndarray | None = None
    moments: np.ndarray | None = None
    class_id: int | None = None
    captions: list[str] | None = None
    caption_features: list[np.ndarray] | None = None
