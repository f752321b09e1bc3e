import numpy as np
import pytest
import torch
from PIL import Image

from zigma_pl.core.errors import UserError
from zigma_pl.data.images import decode_image, resize_and_crop, to_uint8_tensor


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


def test_transparent_images_come_on_white(tmp_path):
    image = Image.new("RGBA", (2, 1), (10, 20, 30, 255))
    image.putpixel((1, 0), (10, 20, 30, 0))
    image.save(tmp_path / "a.png")
    palette = Image.new("P", (2, 1))
    palette.info["transparency"] = 0
    palette.save(tmp_path / "b.png")
    assert np.asarray(decode_image(tmp_path / "a.png")).tolist() == [[[10, 20, 30], [255, 255, 255]]]
    assert np.asarray(decode_image(tmp_path / "b.png")).min() == 255


def test_orientation_is_applied_only_when_asked_for(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    Image.new("RGB", (4, 2)).save(tmp_path / "a.jpg", exif=exif)
    assert decode_image(tmp_path / "a.jpg").size == (4, 2)
    assert decode_image(tmp_path / "a.jpg", upright=True).size == (2, 4)


def test_sixteen_bits_are_refused_instead_of_clipped(tmp_path):
    Image.fromarray(np.full((2, 2), 40_000, dtype=np.uint16)).save(tmp_path / "a.png")
    with pytest.raises(UserError, match="8 bits"):
        decode_image(tmp_path / "a.png")
