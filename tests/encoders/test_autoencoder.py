import json
from functools import reduce

import pytest
import torch
from safetensors.torch import load_file, save_file

from zigma_pl.core.errors import UserError
from zigma_pl.core.randomness import sample_generators
from zigma_pl.encoders import IdentityAutoencoder, KLAutoencoder, build_autoencoder


def save_tiny_kl(path, **config):
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    network = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 8, 8),
        norm_num_groups=4,
        latent_channels=4,
        **{"mid_block_add_attention": False, **config},
    )
    network.save_pretrained(path)
    return network.eval()


@pytest.fixture(scope="module")
def tiny_kl(tmp_path_factory):
    path = tmp_path_factory.mktemp("kl")
    return str(path), save_tiny_kl(path, scaling_factor=0.5, shift_factor=0.25)


def generators(ids, seed=0):
    return sample_generators(seed, "posterior", ids)


def test_identity_passes_pixels():
    autoencoder = build_autoencoder("identity", 1)
    pixels = torch.rand(2, 1, 8, 8)
    assert isinstance(autoencoder, IdentityAutoencoder)
    assert torch.equal(autoencoder.encode(pixels, generators(range(2))), pixels)
    assert torch.equal(autoencoder.decode(pixels), pixels)
    assert (autoencoder.channels, autoencoder.image_channels, autoencoder.downsampling) == (1, 1, 1)


def test_latents_are_the_scaled_and_shifted_posterior_sample(tiny_kl):
    path, network = tiny_kl
    pixels = torch.rand(3, 3, 16, 16) * 2 - 1
    latents = KLAutoencoder(path).encode(pixels, generators(range(3)))
    with torch.no_grad():
        posterior = network.encode(pixels).latent_dist
    noise = torch.stack([torch.randn(4, 4, 4, generator=generator) for generator in generators(range(3))])
    expected = (posterior.mean + posterior.std * noise - 0.25) * 0.5
    torch.testing.assert_close(latents, expected)
    assert not latents.requires_grad


def test_decode_undoes_shift_and_scale(tiny_kl):
    path, network = tiny_kl
    latents = torch.randn(2, 4, 4, 4)
    with torch.no_grad():
        expected = network.decode(latents / 0.5 + 0.25).sample
    torch.testing.assert_close(KLAutoencoder(path).decode(latents), expected)


def test_mean_and_deviation_per_channel(tmp_path):
    mean, std = [0.1, -0.2, 0.3, 0.0], [1.0, 2.0, 0.5, 1.5]
    network = save_tiny_kl(tmp_path, scaling_factor=0.5, latents_mean=mean, latents_std=std)
    latents = torch.randn(1, 4, 4, 4)
    raw = latents * torch.tensor(std).view(1, 4, 1, 1) / 0.5 + torch.tensor(mean).view(1, 4, 1, 1)
    with torch.no_grad():
        expected = network.decode(raw).sample
    torch.testing.assert_close(KLAutoencoder(str(tmp_path)).decode(latents), expected)


@pytest.mark.parametrize(
    "wrong",
    [
        {"latents_mean": [0.0] * 4},
        {"latents_std": [1.0] * 4},
        {"latents_mean": [0.0] * 4, "latents_std": [1.0] * 3},
        {"latents_mean": [0.0] * 4, "latents_std": [1.0, 0.0, 1.0, 1.0]},
        {"scaling_factor": 0.0},
    ],
)
def test_half_a_scale_is_refused(tmp_path, wrong):
    """Kind: tracebacks instead of a one-line error."""
    save_tiny_kl(tmp_path, **wrong)
    with pytest.raises(UserError, match=next(reversed(wrong)).replace("latents_mean", "latents_std")):
        KLAutoencoder(str(tmp_path))


MALFORMED = [
    {"block_out_channels": [32, "x"]},
    {"block_out_channels": []},
    {"block_out_channels": 7},
    {"block_out_channels": [8] * 3000},
    {"in_channels": "3"},
    {"in_channels": None},
    {"latent_channels": -1},
    {"latent_channels": 10**9},
    {"layers_per_block": 10**6},
    {"norm_num_groups": 0},
    {"scaling_factor": None},
    {"scaling_factor": "x"},
    {"shift_factor": [1]},
    {"latents_mean": ["a"] * 4, "latents_std": [1.0] * 4},
    {"_class_name": ["a\nb"]},
    {"_class_name": "a" * 10_000},
    None,
    [],
    "AutoencoderKL",
]


@pytest.mark.parametrize("changed", MALFORMED, ids=lambda value: str(value)[:30])
def test_malformed_but_valid_json_is_one_line(tmp_path, changed):
    """Kind: files of others that are JSON and hold something else."""
    save_tiny_kl(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed} if isinstance(changed, dict) else changed))
    with pytest.raises(UserError, match="autoencoder") as error:
        KLAutoencoder(str(tmp_path))
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 1000


def test_a_network_that_its_files_cannot_hold_is_not_allocated(tmp_path, monkeypatch):
    """Kind: sizes in a file that are allocated before they are checked."""
    save_tiny_kl(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "block_out_channels": [16_384] * 3}))
    autoencoder = KLAutoencoder(str(tmp_path))
    monkeypatch.setattr(
        "diffusers.AutoencoderKL.from_pretrained", lambda *_, **__: pytest.fail("the network was built")
    )
    with pytest.raises(UserError, match=r"describes \d+,\d+,\d+,\d+ weights"):
        autoencoder.decode(torch.zeros(1, 4, 2, 2))


@pytest.mark.parametrize("spoil", ["missing", "NaN"])
def test_weights_that_are_missing_or_not_finite_are_not_made_up(tmp_path, spoil):
    """Kind: wrong numbers without a word; diffusers initialises missing weights randomly."""
    save_tiny_kl(tmp_path)
    path = tmp_path / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    if spoil == "missing":
        del weights["decoder.conv_out.bias"]
    else:
        weights["decoder.conv_out.bias"][0] = torch.nan
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(UserError, match=rf"{spoil}.*decoder\.conv_out\.bias|decoder\.conv_out\.bias.*{spoil}") as error:
        KLAutoencoder(str(tmp_path)).decode(torch.zeros(1, 4, 2, 2))
    assert "\n" not in str(error.value)


def test_weights_under_the_older_names_of_attention_are_complete(tmp_path):
    """As in stabilityai/sd-vae-ft-ema."""
    save_tiny_kl(tmp_path, mid_block_add_attention=True)
    path = tmp_path / "diffusion_pytorch_model.safetensors"
    latents = torch.randn(1, 4, 2, 2)
    expected = KLAutoencoder(str(tmp_path)).decode(latents)
    older = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    weights = load_file(path)
    for name in [name for name in weights if ".attentions." in name]:
        renamed = reduce(lambda text, pair: text.replace(*pair), older.items(), name)
        weights[renamed] = weights.pop(name)
    save_file(weights, path, metadata={"format": "pt"})
    assert torch.equal(KLAutoencoder(str(tmp_path)).decode(latents), expected)


def test_a_sample_does_not_depend_on_its_batch(tiny_kl):
    autoencoder = KLAutoencoder(tiny_kl[0])
    pixels = torch.rand(3, 3, 16, 16)
    together = autoencoder.encode(pixels, generators([7, 8, 9]))
    alone = autoencoder.encode(pixels[1:2], generators([8]))
    torch.testing.assert_close(alone[0], together[1], rtol=0, atol=1e-5)
    assert not torch.allclose(autoencoder.encode(pixels[1:2], generators([9])), alone)


def test_splitting_a_large_batch_changes_nothing(tiny_kl, monkeypatch):
    autoencoder, pixels = KLAutoencoder(tiny_kl[0]), torch.rand(5, 3, 16, 16)
    latents = autoencoder.encode(pixels, generators(range(5)))
    pictures = autoencoder.decode(latents)
    monkeypatch.setattr("zigma_pl.encoders.autoencoder._PIXELS_PER_CALL", 2 * 16 * 16)
    torch.testing.assert_close(autoencoder.encode(pixels, generators(range(5))), latents, rtol=0, atol=1e-5)
    torch.testing.assert_close(autoencoder.decode(latents), pictures, rtol=0, atol=1e-5)


def test_shape_is_known_from_the_configuration_alone(tmp_path):
    save_tiny_kl(tmp_path)
    (tmp_path / "diffusion_pytorch_model.safetensors").unlink()
    autoencoder = build_autoencoder(str(tmp_path), 3)
    assert (autoencoder.channels, autoencoder.downsampling) == (4, 4)
    with pytest.raises(UserError, match="cannot load") as error:
        autoencoder.decode(torch.zeros(1, 4, 2, 2))
    assert str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)


def test_subfolder(tmp_path):
    save_tiny_kl(tmp_path / "vae")
    assert KLAutoencoder(str(tmp_path), "vae").decode(torch.zeros(1, 4, 2, 2)).shape == (1, 3, 8, 8)
    with pytest.raises(UserError, match="autoencoder_subfolder"):
        KLAutoencoder(str(tmp_path))


def test_missing_folder_unreachable_hub_and_other_network_are_named(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"no folder '\./nowhere/deep/vae'"):
        KLAutoencoder("./nowhere/deep/vae")
    (tmp_path / "config.json").write_text('{"_class_name": "VQModel"}')
    with pytest.raises(UserError, match="VQModel"):
        KLAutoencoder(str(tmp_path))

    def unreachable(*_args, **_options):
        raise OSError("no connection\nsecond line")

    monkeypatch.setattr("diffusers.AutoencoderKL.load_config", unreachable)
    with pytest.raises(UserError, match=r"owner/name.*no connection.*identity"):
        KLAutoencoder("owner/name")


def test_number_of_channels_must_agree(tiny_kl):
    with pytest.raises(UserError, match=r"3 channels.*has 1"):
        build_autoencoder(tiny_kl[0], 1)
