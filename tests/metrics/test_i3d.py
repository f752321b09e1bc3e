import pytest
import torch
from metrics.i3d_network import I3DNetwork
from torch import nn

from zigma_pl.core.errors import UserError
from zigma_pl.evaluation.metrics.extractors import build_extractor


class FakeI3D(nn.Module):
    """Called as I3D's script is; of each clip it tells 400 times the mean, from what it was given, frame 0 counted."""

    def __init__(self, num_features: int = 400) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.arange(num_features).float())

    def forward(self, x: torch.Tensor, rescale: bool = False, resize: bool = False, return_features: bool = False):
        if x.dtype != torch.uint8 or x.shape[1] != 3 or not (rescale and resize and return_features):
            raise ValueError("called otherwise than StyleGAN-V calls it")
        x = x.float() / 255 * 2 - 1
        return x[:, 0, 1].mean(dim=[1, 2])[:, None] * self.weight


def save(path, num_features=400):
    torch.jit.script(FakeI3D(num_features)).save(str(path))
    return path


def test_clips_go_in_as_the_script_takes_them(tmp_path):
    extractor = build_extractor("i3d", save(tmp_path / "i3d_torchscript.pt"))
    clips = torch.zeros(2, 12, 3, 8, 8, dtype=torch.uint8)
    clips[0, 1, 0] = 255  # frame 1, red
    features = extractor(clips)
    assert features.shape == (2, 400)
    torch.testing.assert_close(features[:, 3], torch.tensor([3.0, -3.0]))
    assert extractor(clips[:, :, :1]).shape == (2, 400)
    assert extractor.comparable is False


def test_too_few_frames_other_files_and_pictures_are_refused(tmp_path):
    extractor = build_extractor("i3d", save(tmp_path / "i3d_torchscript.pt"))
    with pytest.raises(UserError, match="at least 10 frames, got 9"):
        extractor(torch.zeros(1, 9, 3, 8, 8, dtype=torch.uint8))
    with pytest.raises(UserError, match="needs clips"):
        extractor(torch.zeros(16, 3, 8, 8, dtype=torch.uint8))
    with pytest.raises(UserError, match="the i3d network"):
        build_extractor("i3d", save(tmp_path / "other.pt", 10))(torch.zeros(1, 10, 3, 8, 8, dtype=torch.uint8))
    (tmp_path / "torn.pt").write_bytes(b"torn")
    with pytest.raises(UserError, match=r"i3d: cannot load .*torn\.pt"):
        build_extractor("i3d", tmp_path / "torn.pt")


def test_true_architecture_with_random_weights(tmp_path):
    torch.manual_seed(0)
    network = I3DNetwork().eval()
    assert sum(parameter.numel() for parameter in network.trunk.parameters()) == 12_287_264  # published: 12 million
    torch.jit.script(network).save(str(tmp_path / "i3d_torchscript.pt"))
    extractor = build_extractor("i3d", tmp_path / "i3d_torchscript.pt")
    clips = torch.randint(0, 256, (2, 10, 3, 32, 32), dtype=torch.uint8)
    clips[1] = clips[0].flip(0)  # the same frames backwards
    features = extractor(clips)
    with torch.no_grad():
        expected = network.logits(
            network.trunk(
                torch.nn.functional.interpolate(
                    clips[:1].transpose(1, 2).float() / 127.5 - 1, [10, 224, 224], mode="trilinear"
                )
            )
        ).mean(dim=[2, 3, 4])
    torch.testing.assert_close(features[:1], expected, rtol=1e-3, atol=1e-4)
    assert (features[0] - features[1]).norm() > 1e-2 * features[0].norm()  # time counts
