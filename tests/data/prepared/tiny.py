"""A tiny autoencoder and a small captioned set, prepared through the command line."""

import shutil

import torch

from zigma_pl.cli.commands.prepare import main
from zigma_pl.data import MMCelebAHQ
from zigma_pl.data.synthetic.faces import write_mm_celeba_hq


def save_tiny_kl(path, seed=0):
    from diffusers import AutoencoderKL

    torch.manual_seed(seed)
    AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8), norm_num_groups=4, latent_channels=4, mid_block_add_attention=False,
        scaling_factor=0.5, shift_factor=0.25,
    ).save_pretrained(path)  # fmt: skip
    return str(path)


def write_faces(path, num_images=20):
    """Write a set that counts as real: 16 for training, 4 for testing."""
    path.mkdir(parents=True)
    write_mm_celeba_hq(path, num_images, 16)
    return str(path)


OPTIONS = {"image_size_px": 16, "caption_dim": 16, "max_caption_tokens": 12, "num_validation_images": 3}


def arguments(root, out, autoencoder="identity", **options):
    """Return the command line that prepares the set in shards of 6."""
    given = {
        "root": root, "out": out, "autoencoder": autoencoder, "shard_size": 6, "batch_size": 4, "num_workers": 0,
        "accelerator": "cpu", **OPTIONS, **options,
    }  # fmt: skip
    splits = given.pop("splits", [])
    flags = [f"--{name}={value}" for name, value in given.items() if value is not True]
    flags += [f"--{name}" for name, value in given.items() if value is True]
    return ["mm_celeba_hq", *flags, *(["--splits", *splits] if splits else [])]


def prepare_faces(root, out, autoencoder="identity", **options):
    """Prepare the set; returns the exit status."""
    return main(arguments(root, out, autoencoder, **options))


def faces(root, **options):
    return MMCelebAHQ(str(root), **{"num_workers": 0, "batch_size": 5, **OPTIONS, **options})


def content_of(folder):
    """Return the bytes of every file below a folder, by name."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def copied(source, target):
    shutil.copytree(source, target)
    return target
