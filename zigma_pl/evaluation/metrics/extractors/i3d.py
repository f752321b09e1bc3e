"""I3D trained on Kinetics-400 (arXiv:1705.07750), whose features FVD compares (arXiv:1812.01717)."""

import torch
from torch import Tensor, nn

from zigma_pl.encoders.weights import loading
from zigma_pl.evaluation.metrics.extractors.listed import ListedExtractor


class I3D(ListedExtractor):
    """The 400 logits of the TorchScript file of StyleGAN-V (arXiv:2112.14683), called as there.

    The file holds the resizing too: it takes uint8 in 0 to 255, scales to [-1, 1] (`rescale`) and resizes to 224 x 224
    (`resize`). Its author compared it with the network of the original FVD: equal but for rounding.
    """

    name = "i3d"
    weights_name = "i3d"
    takes = "clips"
    least_frames = 10  # its pooling over time leaves nothing of fewer
    resize = "224 x 224, bilinear, in the network; x / 255 * 2 - 1"
    dim = 400

    def load(self) -> nn.Module:
        """Return the script."""
        with loading(self.name, self.path, f"see python -m zigma_pl weights check {self.weights_name}"):
            return torch.jit.load(self.path, map_location="cpu")

    def features(self, pictures: Tensor) -> Tensor:
        """Return the logits, averaged over time by the network."""
        clips = pictures.transpose(1, 2).contiguous()
        return self.network(clips, rescale=True, resize=True, return_features=True)
