"""The Inception network that FID, sFID, KID, precision and recall are published with."""

from torch import Tensor, nn

from zigma_pl.core.errors import UserError
from zigma_pl.encoders.weights import loading
from zigma_pl.evaluation.metrics.extractors.listed import ListedExtractor
from zigma_pl.evaluation.metrics.extractors.pretrained import load_state


class Inception(ListedExtractor):
    """The 2048 pooled features of the 2015-12-05 Inception (arXiv:1706.08500), by torch-fidelity.

    The network resizes by itself, as TensorFlow 1 did: bilinear, corner not aligned, no antialiasing.
    """

    name = "inception"
    weights_name = "fid-inception"
    resize = "299 x 299, bilinear as TensorFlow 1, not antialiased, in the network; (x - 128) / 128"
    dim = 2048
    layer = "2048"  # after which torch-fidelity's network stops

    def load(self) -> nn.Module:
        """Return torch-fidelity's network, which stops after `layer`."""
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
        except ImportError as error:
            raise UserError(f"{self.name} needs torch-fidelity and torchvision: pip install 'zigma_pl[fid]'") from error
        load_state(self.name, self.path, self.weights_name)  # torch-fidelity itself would run code that a file brings
        with loading(self.name, self.path, f"see python -m zigma_pl weights check {self.weights_name}"):
            return FeatureExtractorInceptionV3("inception-v3-compat", [self.layer], str(self.path))

    def features(self, pictures: Tensor) -> Tensor:
        """Return the output of the last pooling."""
        return self.network(pictures)[0]


class SpatialInception(Inception):
    """The 7 x 17 x 17 features of sFID (arXiv:2103.03841), the layer and channels of ADM's evaluator.

    That is "mixed_6/conv:0" of the TensorFlow graph, of its 192 channels the first 7. The graph calls the 17 x 17
    blocks mixed_4 to mixed_7 what the port calls Mixed_6b to Mixed_6e, and its "conv" is what comes out of a
    convolution's ReLU: so the output of Mixed_6d.branch1x1.
    """

    name = "inception_spatial"
    dim = 7 * 17 * 17
    layer = "768"

    def features(self, pictures: Tensor) -> Tensor:
        """Return the first channels of the layer, one after the other."""
        seen: list[Tensor] = []
        layer = self.network.get_submodule("Mixed_6d.branch1x1")
        handle = layer.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
        try:
            self.network(pictures)
        finally:
            handle.remove()
        return seen[0][:, :7].flatten(1)
