import numpy as np
import pytest
import torch
from PIL import Image

from zigma_pl.evaluation.metrics.extractors.resize import normalise, resize_like_pillow


@pytest.mark.parametrize("kernel", ["bilinear", "bicubic"])
@pytest.mark.parametrize(
    ("old", "new"), [((64, 64), (224, 224)), ((300, 257), (224, 224)), ((96, 40), (33, 77)), ((8, 8), (64, 64))]
)
def test_is_that_of_pillow(kernel, old, new):
    pixels = torch.randint(256, (2, 3, *old), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    resized = resize_like_pillow(pixels, *new, kernel)
    for picture, result in zip(pixels, resized, strict=True):
        image = Image.fromarray(picture.permute(1, 2, 0).numpy())
        expected = np.asarray(image.resize(new[::-1], getattr(Image.Resampling, kernel.upper())), dtype=np.float32)
        np.testing.assert_array_equal(result.permute(1, 2, 0), expected)


def test_halving_is_an_average_of_the_neighbours_by_hand():
    # Bilinear, halved: a triangle of two pixels each side, weights 1 3 3 1 of 8; cut at the border and scaled.
    row = torch.tensor([0, 80, 160, 240, 40, 120, 200, 8], dtype=torch.uint8).expand(1, 1, 8, 8)
    resized = resize_like_pillow(row, 4, 4, "bilinear")
    expected = [
        (3 * 0 + 3 * 80 + 160) / 7,
        (80 + 3 * 160 + 3 * 240 + 40) / 8,
        (240 + 3 * 40 + 3 * 120 + 200) / 8,
        (120 + 3 * 200 + 3 * 8) / 7,
    ]
    assert resized[0, 0, 2].tolist() == [int(value + 0.5) for value in expected]


def test_same_size_is_no_change_and_normalising_is_by_channel():
    pixels = torch.randint(256, (1, 3, 5, 5), dtype=torch.uint8)
    assert torch.equal(resize_like_pillow(pixels, 5, 5, "bicubic"), pixels.float())
    white = normalise(torch.full((1, 3, 1, 1), 255.0), (0.5, 0.25, 1.0), (0.5, 0.25, 2.0))
    assert white.flatten().tolist() == [1, 3, 0]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.parametrize("kernel", ["bilinear", "bicubic"])
def test_a_gpu_gives_the_same_bits(kernel):
    pixels = torch.randint(256, (20, 3, 100, 300), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    on_gpu = resize_like_pillow(pixels.cuda(), 224, 224, kernel)
    assert torch.equal(on_gpu.cpu(), resize_like_pillow(pixels, 224, 224, kernel))
