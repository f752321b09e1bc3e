import numpy as np
import pytest
import torch
from PIL import Image

from zigma_pl.data.images import decode_image, resize_and_crop, to_uint8_tensor
from zigma_pl.errors import UserError


def test_crop_takes_the_centre():
    pixels = np.arange(4 * 10, dtype=np.uint8).reshape(4, 10)
    wide, tall = Image.fromarray(pixels), Image.fromarray(pixels.T.copy())
    assert np.array_equal(np.asarray(resize_and_crop(wide, 4)), pixels[:, 3:7])
    assert np.array_equal(np.asarray(resize_and_crop(tall, 4)), pixels.T[3:7])


@pytest.mark.parametrize("size", [(64, 64), (97, 64), (64, 131), (33, 1000), (5, 7)])
def test_result_is_always_the_square_asked_for(size):
    assert resize_and_crop(Image.new("RGB", size), 24).size == (24, 24)


def test_shrinking_is_antialiased():
    stripes = np.zeros((64, 64), dtype=np.uint8)
    stripes[:, ::2] = 255
    small = np.asarray(resize_and_crop(Image.fromarray(stripes), 16)).astype(float)
    # Away from the border, one-pixel stripes become even grey; nearest or plain bilinear sampling keeps black or white.
    assert np.abs(small[:, 2:-2] - 127.5).max() < 3


def test_tensor_is_channels_first_and_flips_left_to_right():
    pixels = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    tensor = to_uint8_tensor(Image.fromarray(pixels))
    assert tensor.dtype == torch.uint8
    assert torch.equal(tensor, torch.from_numpy(pixels).permute(2, 0, 1))
    assert to_uint8_tensor(Image.new("L", (5, 4))).shape == (1, 4, 5)


@pytest.mark.parametrize("damage", ["truncated", "text", "empty", "missing"])
def test_bad_image_names_the_file_and_the_remedy(tmp_path, damage):
    path = tmp_path / "7.jpg"
    Image.effect_noise((64, 64), 50).convert("RGB").save(path)
    content = {"truncated": path.read_bytes()[:900], "text": b"no image", "empty": b""}.get(damage)
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match="replace it") as error:
        decode_image(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_grey_and_palette_images_become_rgb(tmp_path):
    for mode in ("L", "P", "RGBA"):
        Image.new(mode, (4, 4)).save(tmp_path / f"{mode}.png")
        assert decode_image(tmp_path / f"{mode}.png").mode == "RGB"
