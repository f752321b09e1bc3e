"""DINOv2 ViT-L/14, the features of FDD (arXiv:2306.04675)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zigma_pl.encoders.weights import loading
from zigma_pl.evaluation.metrics.extractors.listed import ListedExtractor
from zigma_pl.evaluation.metrics.extractors.pretrained import load_pretrained
from zigma_pl.evaluation.metrics.extractors.resize import IMAGENET_MEAN, IMAGENET_STD, normalise, resize_like_pillow

INPUT_SIZE_PX = 224


class Dinov2(ListedExtractor):
    """The class token after the final normalisation, the default of dgm-eval, the code of arXiv:2306.04675."""

    name = "dinov2"
    weights_name = "dinov2-large"
    resize = "224 x 224, bicubic, antialiased, as Pillow; ImageNet's mean and standard deviation"

    def load(self) -> nn.Module:
        """Return the transformer for images of 224 px."""
        from transformers import Dinov2Model

        network = load_pretrained(Dinov2Model, self.name, self.path)
        self.dim = int(network.config.hidden_size)
        with loading(self.name, self.path, f"see python -m zigma_pl weights check {self.weights_name}"):
            embeddings = network.embeddings
            positions = positions_for(embeddings.position_embeddings, INPUT_SIZE_PX // network.config.patch_size)
        embeddings.position_embeddings = nn.Parameter(positions)
        return network

    def preprocess(self, pictures: Tensor) -> Tensor:
        """Resize and normalise."""
        resized = resize_like_pillow(pictures, INPUT_SIZE_PX, INPUT_SIZE_PX, "bicubic")
        return normalise(resized, IMAGENET_MEAN, IMAGENET_STD)

    def features(self, pictures: Tensor) -> Tensor:
        """Return the class token."""
        return self.network(self.preprocess(pictures)).last_hidden_state[:, 0]


@torch.no_grad()
def positions_for(positions: Tensor, side: int) -> Tensor:
    """Interpolate position embeddings (1, 1 + old side^2, d) to (1, 1 + side^2, d) like the original network.

    The original scales by (side + 0.1) / old side to avoid rounding errors, which shifts the sampling points slightly;
    transformers scales by side / old side. Published scores were computed with the original.
    """
    old_side = round((positions.shape[1] - 1) ** 0.5)
    if old_side == side:
        return positions
    grid = positions[:, 1:].float().unflatten(1, (old_side, old_side)).movedim(-1, 1)
    scale = (side + 0.1) / old_side
    grid = F.interpolate(grid, scale_factor=(scale, scale), mode="bicubic")
    return torch.cat([positions[:, :1], grid.movedim(1, -1).flatten(1, 2)], dim=1)
