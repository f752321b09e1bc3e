"""The Inception network of published FID, sFID, KID, precision and recall."""

from torch import Tensor, nn

from zigma_pl.core.errors import UserError
from zigma_pl.encoders.weights import loading
from zigma_pl.evaluation.metrics.extractors.listed import ListedExtractor
from zigma_pl.evaluation.metrics.extractors.pretrained import load_state


class Inception(ListedExtractor):
    """The 2048 pooled features of the 2015-12-05 Inception network (arXiv:1706.08500), from torch-fidelity.

    The network resizes its input like TensorFlow 1: bilinear, without aligned corners, without antialiasing.
    """

    name = "inception"
    weights_name = "fid-inception"
    resize = "299 x 299, bilinear as TensorFlow 1, not antialiased, in the network; (x - 128) / 128"
    dim = 2048
    layer = "2048"  # last layer that torch-fidelity's network computes

    def load(self) -> nn.Module:
        """Return torch-fidelity's network up to `layer`."""
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
        except ImportError as error:
            raise UserError(f"{self.name} needs torch-fidelity and torchvision: pip install 'zigma_pl[fid]'") from error
        load_state(self.name, self.path, self.weights_name)  # torch-fidelity itself could execute code from the file
        with loading(self.name, self.path, f"see python -m zigma_pl weights check {self.weights_name}"):
            return FeatureExtractorInceptionV3("inception-v3-compat", [self.layer], str(self.path))

    def features(self, pictures: Tensor) -> Tensor:
        """Return the output of the last pooling."""
        return self.network(pictures)[0]


class SpatialInception(Inception):
    """The 7 x 17 x 17 features of sFID (arXiv:2103.03841), with the layer and channels of ADM's evaluator.

    These are the first 7 of 192 channels of "mixed_6/conv:0" in the TensorFlow graph. The graph's 17 x 17 blocks
    mixed_4 to mixed_7 are called Mixed_6b to Mixed_6e in the PyTorch port, and its "conv" is the output of the ReLU
    after a convolution. So this is the output of Mixed_6d.branch1x1.
    """

    name = "inception_spatial"
    dim = 7 * 17 * 17
    layer = "768"

    def features(self, pictures: Tensor) -> Tensor:
        """Return the first 7 channels of the layer, flattened."""
        seen: list[Tensor] = []
        layer = self.network.get_submodule("Mixed_6d.branch1x1")
        handle = layer.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
        try:
            self.network(pictures)
        finally:
            handle.remove()
        return seen[0][:, :7].flatten(1)
