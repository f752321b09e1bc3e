import numpy as np
import pytest
import torch
from PIL import Image

from zigma_pl.core.errors import UserError
from zigma_pl.evaluation.metrics.extractors import build_extractor
from zigma_pl.evaluation.metrics.extractors.dinov2 import positions_for


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """ViT-L/14 as published, but 2 of its 24 layers and a quarter of its width, with random weights."""
    from transformers import Dinov2Config, Dinov2Model

    path = tmp_path_factory.mktemp("dinov2")
    torch.manual_seed(0)
    config = Dinov2Config(hidden_size=256, num_attention_heads=4, num_hidden_layers=2, image_size=518, patch_size=14)
    Dinov2Model(config).save_pretrained(path)
    return path


def test_features_are_the_class_token_after_the_last_norm(folder):
    from transformers import Dinov2Model

    extractor = build_extractor("dinov2", folder)
    pictures = torch.randint(256, (2, 3, 64, 80), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    features = extractor(pictures)
    assert features.shape == (2, extractor.dim) == (2, 256)
    network = Dinov2Model.from_pretrained(folder).eval()
    network.embeddings.position_embeddings.data = positions_for(network.embeddings.position_embeddings, 16)
    tokens = []
    network.layernorm.register_forward_hook(lambda _module, _inputs, output: tokens.append(output[:, 0]))
    image = [Image.fromarray(picture.permute(1, 2, 0).numpy()).resize((224, 224), 3) for picture in pictures]
    values = torch.from_numpy(np.stack([np.asarray(picture) for picture in image])).permute(0, 3, 1, 2) / 255
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.no_grad():
        network((values - mean[:, None, None]) / std[:, None, None])
    torch.testing.assert_close(features, tokens[0], rtol=1e-4, atol=1e-4)


def test_preprocessing_of_one_colour_by_hand(folder):
    colour = torch.tensor([255, 0, 51], dtype=torch.uint8).view(1, 3, 1, 1).expand(1, 3, 100, 60)
    values = build_extractor("dinov2", folder).preprocess(colour)
    assert values.shape == (1, 3, 224, 224)
    expected = torch.tensor([(1 - 0.485) / 0.229, -0.456 / 0.224, (0.2 - 0.406) / 0.225]).view(1, 3, 1, 1)
    torch.testing.assert_close(values, expected.expand_as(values))


def test_positions_are_sampled_where_the_original_network_does():
    # Only row 20 of the 37 is not zero: what a new row gets of it is the cubic kernel (torch's, a = -3/4) at the
    # distance of 20 from where that row is sampled, (i + 1/2) 37 / 16.1 - 1/2.
    rows = (torch.arange(37) == 20).float()[:, None].expand(37, 37).reshape(1, -1, 1)
    sampled = positions_for(torch.cat([torch.full((1, 1, 1), 7.0), rows], dim=1), 16)
    assert sampled.shape == (1, 257, 1)
    assert sampled[0, 0] == 7

    def kernel(x):
        near = 1.25 * x**3 - 2.25 * x**2 + 1
        far = -0.75 * (x**3 - 5 * x**2 + 8 * x - 4)
        return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))

    expected = kernel(((torch.arange(16) + 0.5) * 37 / 16.1 - 0.5 - 20).abs())
    torch.testing.assert_close(sampled[0, 1:, 0].view(16, 16), expected[:, None].expand(16, 16), rtol=0, atol=1e-5)
    assert positions_for(sampled, 16) is sampled


def test_random_weights_are_not_comparable_and_known_by_their_hash(folder, tmp_path):
    from zigma_pl.core.files import sha256

    fingerprint = build_extractor("dinov2", folder).fingerprint()
    assert fingerprint["comparable"] is False
    assert fingerprint["weights_sha256"] == sha256(folder / "model.safetensors")


def test_missing_broken_and_incomplete_weights_are_named(folder, tmp_path, in_tmp):
    from safetensors.torch import load_file, save_file

    with pytest.raises(UserError, match=r"weights/dinov2-large/model.safetensors is missing .*399fba.*weights fetch"):
        build_extractor("dinov2")
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    broken = tmp_path / "model.safetensors"
    broken.write_bytes((folder / "model.safetensors").read_bytes()[:-100])
    with pytest.raises(UserError, match="cannot load"):
        build_extractor("dinov2", tmp_path)
    state = load_file(folder / "model.safetensors")
    del state["layernorm.weight"]
    save_file(state, broken, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"layernorm\.weight and 0 more"):
        build_extractor("dinov2", tmp_path)
