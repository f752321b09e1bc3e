"""Alignment of a layer's tokens with features of the clean image, as in REPA (arXiv:2410.06940)."""

from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, unfold

from zigma_pl.interpolant import LossInputs, LossTerm


class Alignment(LossTerm):
    """One minus the cosine similarity of projected tokens and features, averaged over the tokens.

    REPA uses features of DINOv2. To keep the example free of downloads, the features here are the pixels of a token's
    patch.

    Args:
        width: D, the width of the backbone.
        patch_size_px: side of a token's patch in pixels.
        layer: layer of the backbone whose tokens are aligned.
        weight: factor of the term in the total loss.
        end_step: optimiser step after which the term is left out; None for never.
    """

    def __init__(
        self, width: int, patch_size_px: int, layer: str = "blocks.3", weight: float = 0.5, end_step: int | None = None
    ) -> None:
        super().__init__(weight, end_step=end_step, layers=[layer])
        self.patch_size_px = patch_size_px
        self.head = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, patch_size_px**2))

    def forward(self, inputs: LossInputs) -> Tensor:
        """Return the term of each sample, (B,)."""
        tokens = inputs.features[self.layers[0]]  # (B, L, D) in raster order
        grey = inputs.batch.images.float().mean(1, keepdim=True) / 127.5 - 1
        features = unfold(grey, self.patch_size_px, stride=self.patch_size_px).mT  # (B, L, pixels)
        return 1 - cosine_similarity(self.head(tokens), features, dim=-1).mean(1)
