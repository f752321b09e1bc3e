"""I3D trained on Kinetics-400 (arXiv:1705.07750), the features of FVD (arXiv:1812.01717)."""

import torch
from torch import Tensor, nn

from zigma_pl.encoders.weights import loading
from zigma_pl.evaluation.metrics.extractors.listed import ListedExtractor


class I3D(ListedExtractor):
    """The 400 logits of the TorchScript file of StyleGAN-V (arXiv:2112.14683), called as in StyleGAN-V.

    The file includes the preprocessing: it takes uint8 in 0 to 255, scales to [-1, 1] (`rescale`) and resizes to
    224 x 224 (`resize`). According to its author, it equals the network of the original FVD up to rounding.
    """

    name = "i3d"
    weights_name = "i3d"
    takes = "clips"
    least_frames = 10  # with fewer, its temporal pooling returns no output
    resize = "224 x 224, bilinear, in the network; x / 255 * 2 - 1"
    dim = 400

    def load(self) -> nn.Module:
        """Return the TorchScript module."""
        with loading(self.name, self.path, f"see python -m zigma_pl weights check {self.weights_name}"):
            return torch.jit.load(self.path, map_location="cpu")

    def features(self, pictures: Tensor) -> Tensor:
        """Return the logits, which the network averages over time."""
        clips = pictures.transpose(1, 2).contiguous()
        return self.network(clips, rescale=True, resize=True, return_features=True)
