import numpy as np
import torch
from PIL import Image

from zigma_pl.core.grid import as_chw_array, save_png, tile, to_pil, to_uint8


def test_eight_bits_are_rounded_and_clamped():
    images = torch.tensor([-1.0, 0.0, 0.5, 1.0, 7.0]).reshape(5, 1, 1, 1)
    assert to_uint8(images).flatten().tolist() == [0, 0, 128, 255, 255]
    assert to_uint8(torch.zeros(2, 3, 4, 5)).shape == (2, 4, 5, 3)


def test_tiles_go_row_by_row_and_tiny_ones_are_enlarged():
    images = [to_pil(torch.full((8, 8, 1), value, dtype=torch.uint8)) for value in (10, 20, 30)]
    grid = np.asarray(tile(images, num_columns=2, min_side_px=32, padding_px=2))
    assert grid.shape == (2 * 34 + 2, 2 * 34 + 2, 3)
    assert [grid[10, 10, 0], grid[10, 50, 0], grid[50, 10, 0], grid[50, 50, 0]] == [10, 20, 30, 255]
    assert (grid[2:34, 2:34] == 10).all()


def test_large_tiles_keep_their_size():
    assert tile([Image.new("RGB", (64, 48))], num_columns=1, padding_px=0).size == (64, 48)


def test_saving_leaves_no_temporary_file_and_replaces(tmp_path):
    for colour in ("red", "blue"):
        save_png(Image.new("RGB", (4, 4), colour), tmp_path / "deep" / "picture.png")
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["picture.png"]
    with Image.open(tmp_path / "deep" / "picture.png") as picture:
        assert picture.getpixel((0, 0)) == (0, 0, 255)
        assert as_chw_array(picture).shape == (3, 4, 4)
