import numpy as np
import pytest
import torch
from PIL import Image

from zigma_pl.core.grid import as_chw_array, save_png, tile, to_pil, to_uint8
from zigma_pl.core.labels import MAX_LINES, _font, wrapped


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


def test_cells_are_at_least_128_pixels_and_larger_pictures_keep_their_size():
    for size, cell in [((8, 8), (128, 128)), ((100, 60), (300, 180)), ((160, 128), (160, 128))]:
        assert tile([Image.new("RGB", size)], num_columns=1, padding_px=0).size == cell


def labelled(labels, num_columns=2, side=32):
    """Return a grid of black pictures with these labels, the rectangle of each label as an array, and the height."""
    images = [Image.new("RGB", (side, side))] * len(labels)
    width, plain = tile(images, num_columns).size
    grid = np.asarray(tile(images, num_columns, labels))
    num_rows = -(-len(labels) // num_columns)
    cell, height = (width - 2) // num_columns, (grid.shape[0] - plain) // num_rows
    places = [divmod(index, num_columns) for index in range(len(labels))]
    corners = [(row * (cell + height) + cell, column * cell + 2) for row, column in places]
    return [grid[top : top + height, left : left + cell - 2] for top, left in corners], height


def test_each_picture_has_its_label_below_it():
    strips, height = labelled(["cat", "", "a dog", "cat"])
    dark = [int((strip < 128).sum()) for strip in strips]
    assert dark[1] == 0
    assert dark[2] > dark[0] == dark[3] > 0
    assert 15 < height < 20
    assert labelled(["", "", ""])[1] == 0


def test_a_long_label_stays_in_its_cell():
    strips, height = labelled(["i", "m " * 80, "W" * 300])
    assert height == MAX_LINES * labelled(["i"])[1]
    for strip in strips:
        assert (strip[:, :2] == 255).all()
        assert (strip[:, -2:] == 255).all()
        assert (strip[-1] == 255).all()


def test_labels_are_as_readable_on_large_pictures():
    assert labelled(["cat"], side=512)[1] == pytest.approx(4 * labelled(["cat"], side=128)[1], abs=4)


def test_lines_are_wrapped_at_words_and_shortened():
    font = _font(14)
    caption = "a person with red hair\nand glasses"
    lines = wrapped(caption, font, 120)
    assert " ".join(lines) == " ".join(caption.split())
    assert len(lines) > 1
    assert "".join(wrapped("x" * 40, font, 120)) == "x" * 40
    short = wrapped("one two three " * 20, font, 120)
    assert len(short) == MAX_LINES
    assert short[-1].endswith("…")
    assert all(font.getlength(line) <= 120 for line in [*lines, *short])
    assert wrapped(" \n", font, 120) == []


def test_saving_leaves_no_temporary_file_and_replaces(tmp_path):
    for colour in ("red", "blue"):
        save_png(Image.new("RGB", (4, 4), colour), tmp_path / "deep" / "picture.png")
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["picture.png"]
    with Image.open(tmp_path / "deep" / "picture.png") as picture:
        assert picture.getpixel((0, 0)) == (0, 0, 255)
        assert as_chw_array(picture).shape == (3, 4, 4)
