import pytest
import torch
from torch.nn.functional import interpolate, layer_norm

from zigma_pl.core.errors import UserError
from zigma_pl.evaluation.metrics.extractors import build_extractor
from zigma_pl.losses import CLIPTeacher, Dinov2Teacher, LiteTeacher
from zigma_pl.training.losses.teachers import resized


@pytest.fixture
def images():
    return torch.randint(256, (2, 3, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def dinov2(tmp_path_factory):
    from transformers import Dinov2Config, Dinov2Model

    path = tmp_path_factory.mktemp("dinov2")
    torch.manual_seed(0)
    config = Dinov2Config(hidden_size=24, num_attention_heads=2, num_hidden_layers=2, image_size=28, patch_size=14)
    Dinov2Model(config).save_pretrained(path)
    return str(path)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    from transformers import CLIPConfig, CLIPModel

    path = tmp_path_factory.mktemp("clip")
    tower = {"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    config = CLIPConfig(
        text_config={**tower, "vocab_size": 60}, vision_config={**tower, "image_size": 28, "patch_size": 14}
    )
    CLIPModel(config).save_pretrained(path)
    return str(path)


def test_dinov2_returns_the_patch_tokens_after_the_last_norm(dinov2, images):
    from transformers import Dinov2Model

    maps = Dinov2Teacher(dinov2, dim=24, size_px=28)(images)
    assert maps.shape == (2, 24, 2, 2)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.no_grad():
        values = (images / 255 - mean[:, None, None]) / std[:, None, None]
        tokens = Dinov2Model.from_pretrained(dinov2).eval()(values).last_hidden_state
    torch.testing.assert_close(maps[:, :, 0, 1], tokens[:, 2])
    torch.testing.assert_close(maps[:, :, 1, 0], tokens[:, 3])
    assert Dinov2Teacher(dinov2, dim=24, size_px=56)(images).shape == (2, 24, 4, 4)


def test_clip_returns_the_normalised_patch_tokens(clip, images):
    from transformers import CLIPModel

    maps = CLIPTeacher(clip, dim=24, size_px=28)(images)
    assert maps.shape == (2, 24, 2, 2)
    network = CLIPModel.from_pretrained(clip).eval().vision_model
    mean, std = torch.tensor([0.48145466, 0.4578275, 0.40821073]), torch.tensor([0.26862954, 0.26130258, 0.27577711])
    with torch.no_grad():
        values = (images / 255 - mean[:, None, None]) / std[:, None, None]
        tokens = network.post_layernorm(network(pixel_values=values).last_hidden_state)
    torch.testing.assert_close(maps[:, :, 1, 0], tokens[:, 3], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("stride", "dim"), [(8, 40), (16, 112)])
def test_lite_returns_the_last_block_of_its_stride(stride, dim):
    images = torch.randint(256, (2, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    maps = LiteTeacher(stride, size_px=64)(images)
    assert maps.shape == (2, dim, 64 // stride, 64 // stride)
    extractor, outputs = build_extractor("lite"), []
    for block in extractor.network._blocks:
        block.register_forward_hook(lambda module, given, output: outputs.append(output))
    extractor(images)  # 64 pixels are not resized
    last = [output for output in outputs if output.shape[-1] == 64 // stride][-1]
    expected = layer_norm(last.movedim(1, -1), (dim,)).movedim(-1, 1)
    torch.testing.assert_close(maps, expected, rtol=1e-4, atol=1e-4)
    assert sum(p.requires_grad for p in LiteTeacher(stride).network.parameters()) == 0


def test_lite_takes_grey_images_of_any_size():
    grey = torch.randint(256, (1, 1, 20, 20), dtype=torch.uint8)
    teacher = LiteTeacher(size_px=64)
    torch.testing.assert_close(teacher(grey), teacher(grey.expand(-1, 3, -1, -1)))


def test_images_are_resized_with_antialiasing_and_stay_in_range(images):
    small = resized(images, 14)
    assert small.shape == (2, 3, 14, 14)
    assert 0 <= small.min() < small.max() <= 255
    assert (small - interpolate(images.float(), size=(14, 14), mode="nearest")).abs().max() > 20
    assert torch.equal(resized(images, 28), images.float())


def test_the_random_state_is_kept():
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    assert LiteTeacher().network is not None
    assert torch.equal(torch.rand(1), expected)


def test_options_that_do_not_fit_the_weights_are_named(dinov2, clip, images, tmp_path):
    for teacher, word in (
        (Dinov2Teacher(dinov2, size_px=28), "dim"),
        (Dinov2Teacher(dinov2, dim=24, size_px=30), "size_px"),
        (CLIPTeacher(clip, dim=24), "size_px"),
        (Dinov2Teacher(str(tmp_path)), "missing"),
    ):
        with pytest.raises(UserError, match=word):
            teacher(images)
    with pytest.raises(UserError, match="stride"):
        LiteTeacher(stride=4)
