"""Needs torch-fidelity and torchvision, which has no CPU build: tools/device/metrics.sh runs this where they are."""

import sys

import pytest
import torch

from zigma_pl.core.errors import UserError
from zigma_pl.evaluation.metrics.extractors import build_extractor


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """The FID network with random weights, saved as the published file is."""
    reason = "no torch-fidelity with torchvision here: tools/device/metrics.sh runs this on a GPU machine"
    inception = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3", reason=reason)
    torch.manual_seed(0)
    network = RandomWeights(inception).state_dict()
    path = tmp_path_factory.mktemp("inception") / "weights-inception-2015-12-05-6726825d.pth"
    torch.save(network, path)
    return path


class RandomWeights:
    """torch-fidelity's network wants a file of weights to be built at all: this gives its own random ones."""

    def __init__(self, inception):
        network_class = inception.FeatureExtractorInceptionV3
        load_from_address, inception.load_state_dict_from_url = inception.load_state_dict_from_url, lambda *_, **__: {}
        load_state, network_class.load_state_dict = network_class.load_state_dict, lambda *_: None
        try:
            self.network = network_class("random", ["2048"])
        finally:
            inception.load_state_dict_from_url, network_class.load_state_dict = load_from_address, load_state

    def state_dict(self):
        return self.network.state_dict()


def pictures(*shape):
    return torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_pooled_features_are_the_mean_of_the_last_block(weights):
    extractor = build_extractor("inception", weights)
    seen = []
    extractor.network.Mixed_7c.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    features = extractor(pictures(2, 3, 40, 50))
    assert features.shape == (2, 2048)
    torch.testing.assert_close(features, seen[0].mean(dim=(2, 3)), rtol=1e-4, atol=1e-5)
    assert extractor.comparable is False  # random weights


def test_spatial_features_are_the_first_seven_channels_of_the_first_branch(weights):
    extractor = build_extractor("inception_spatial", weights)
    seen = []
    # The block's output begins with the branch's 192 channels, so its first seven are those asked for.
    extractor.network.Mixed_6d.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    features = extractor(pictures(2, 3, 64, 64))
    assert features.shape == (2, 2023)
    assert torch.equal(features, seen[0][:, :7].flatten(1))
    assert (features >= 0).all()  # after the ReLU
    assert not extractor.network.Mixed_6d.branch1x1._forward_hooks


def test_resizing_is_that_of_tensorflow_1_by_hand(weights):
    extractor = build_extractor("inception", weights)
    seen = []
    extractor.network.Conv2d_1a_3x3.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    # No antialiasing, corners not aligned: of 598 pixels every second is taken, and the others are not looked at.
    large = pictures(1, 3, 598, 598)
    extractor(large)
    assert torch.equal(seen.pop(), (large[..., ::2, ::2].float() - 128) / 128)
    # Two columns, 0 and 128, enlarged: column i lies at 2 i / 299, and stays 128 after the last.
    two = torch.tensor([0, 128], dtype=torch.uint8).expand(1, 3, 2, 2)
    extractor(two)
    place = (torch.arange(299) * 2 / 299).clamp(max=1)
    torch.testing.assert_close(seen.pop()[0, 0, 150], place - 1, rtol=0, atol=1e-5)


def test_a_file_that_brings_code_is_not_loaded(weights, tmp_path):
    path = tmp_path / "evil.pth"
    torch.save({"fc.bias": print}, path)
    with pytest.raises(UserError, match="more than tensors"):
        build_extractor("inception", path)


def test_missing_torch_fidelity_is_told(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", None)
    (tmp_path / "weights.pth").write_bytes(b"")
    with pytest.raises(UserError, match=r"pip install 'zigma_pl\[fid\]'"):
        build_extractor("inception", tmp_path / "weights.pth")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_a_gpu_gives_the_features_of_the_cpu(weights):
    extractor, images = build_extractor("inception", weights), pictures(2, 1, 64, 64)
    features = extractor(images)
    on_gpu = extractor.to("cuda")(images)
    assert on_gpu.device.type == "cuda"
    torch.testing.assert_close(on_gpu.cpu(), features, rtol=1e-2, atol=1e-2 * float(features.abs().max()))
