"""Pictures beside the page: large ones are stored small, others as they are."""

import numpy as np
import pytest
from PIL import Image

from zigma_pl.report.assets import Assets


def save(path, side):
    """Write noise, which no format without loss makes smaller."""
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)).save(path)
    return path


@pytest.fixture
def assets(tmp_path):
    return Assets(tmp_path / "report" / "assets")


def test_a_small_picture_is_copied_as_it_is(tmp_path, assets):
    source = save(tmp_path / "small.png", 20)
    address, size = assets.copy_picture(source, "pictures/grid")
    assert (address, size) == ("assets/pictures/grid.png", (20, 20))
    assert (assets.folder / "pictures/grid.png").read_bytes() == source.read_bytes()


def test_a_large_picture_takes_a_fraction_and_looks_the_same(tmp_path, assets):
    smooth = np.add.outer(np.arange(300), np.arange(300)) / 600 * 255
    noise = np.random.default_rng(0).normal(0, 2, (300, 300, 3))
    pixels = np.clip(smooth[..., None] + noise, 0, 255).astype(np.uint8)
    source = tmp_path / "large.png"
    Image.fromarray(pixels).save(source)
    address, size = assets.copy_picture(source, "pictures/grid")
    assert (address, size) == ("assets/pictures/grid.webp", (300, 300))
    stored = assets.folder / "pictures/grid.webp"
    assert stored.stat().st_size < source.stat().st_size / 4
    with Image.open(stored) as picture:
        assert np.abs(np.asarray(picture, dtype=float) - pixels).mean() < 3


def test_pictures_of_one_name_are_kept_apart(tmp_path, assets):
    source = save(tmp_path / "grid.png", 200)
    addresses = {assets.copy_picture(source, "grid")[0] for _ in range(2)}
    assert addresses == {"assets/grid.webp", "assets/_grid.webp"}


def test_what_is_no_picture_is_not_copied(tmp_path, assets):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    assert assets.copy_picture(tmp_path / "broken.png", "broken") is None
    assert not list(assets.folder.glob("broken*"))
