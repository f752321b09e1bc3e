"""Files beside the page. Kinds: whole or not at all; pictures that others wrote."""

from contextlib import suppress

import numpy as np
import pytest
from PIL import Image

from zigma_pl.core.errors import UserError
from zigma_pl.suite.report.assets import Assets, new_assets


def save(path, side):
    """Write noise, which no format without loss makes smaller."""
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)).save(path)
    return path


@pytest.fixture
def assets(tmp_path):
    folder = tmp_path / "report" / "assets" / "1"
    folder.mkdir(parents=True)
    return Assets(folder)


def test_a_small_picture_is_copied_as_it_is(tmp_path, assets):
    source = save(tmp_path / "small.png", 20)
    address, size = assets.copy_picture(source, "pictures/grid")
    assert (address, size) == ("assets/1/pictures/grid.png", (20, 20))
    assert (assets.folder / "pictures/grid.png").read_bytes() == source.read_bytes()


def test_a_large_picture_takes_a_fraction_and_looks_the_same(tmp_path, assets):
    smooth = np.add.outer(np.arange(300), np.arange(300)) / 600 * 255
    noise = np.random.default_rng(0).normal(0, 2, (300, 300, 3))
    pixels = np.clip(smooth[..., None] + noise, 0, 255).astype(np.uint8)
    source = tmp_path / "large.png"
    Image.fromarray(pixels).save(source)
    address, size = assets.copy_picture(source, "pictures/grid")
    assert (address, size) == ("assets/1/pictures/grid.webp", (300, 300))
    stored = assets.folder / "pictures/grid.webp"
    assert stored.stat().st_size < source.stat().st_size / 4
    with Image.open(stored) as picture:
        assert np.abs(np.asarray(picture, dtype=float) - pixels).mean() < 3


def test_pictures_of_one_name_are_kept_apart(tmp_path, assets):
    source = save(tmp_path / "grid.png", 200)
    addresses = {assets.copy_picture(source, "grid")[0] for _ in range(2)}
    assert addresses == {"assets/1/grid.webp", "assets/1/_grid.webp"}


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n"


@pytest.mark.parametrize("content", [b"no picture", b"", EPS, b"\x89PNG\r\n\x1a\n" + bytes(100_000)])
def test_what_is_no_picture_is_not_copied(tmp_path, assets, content):
    (tmp_path / "broken.png").write_bytes(content)
    assert assets.copy_picture(tmp_path / "broken.png", "broken") is None
    assert not list(assets.folder.glob("broken*"))


def test_a_long_thin_picture_is_copied_as_it_is(tmp_path, assets):
    pixels = np.random.default_rng(0).integers(0, 256, (20_000, 2, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "thin.png")
    assert assets.copy_picture(tmp_path / "thin.png", "thin")[0] == "assets/1/thin.png"


def test_earlier_assets_stay_until_the_page_is_replaced(tmp_path):
    folder = tmp_path / "assets"
    with new_assets(folder) as first:
        first.write("old", "a.txt")
    with suppress(RuntimeError), new_assets(folder) as second:
        second.write("new", "a.txt")
        assert (folder / "1" / "a.txt").read_text() == "old"
        raise RuntimeError
    assert [entry.name for entry in folder.glob("[!.]*")] == ["1"]
    (folder / "2").mkdir()  # left by a killed report
    with new_assets(folder) as third:
        third.write("new", "a.txt")
    assert [str(path.relative_to(folder)) for path in folder.rglob("*.txt")] == ["3/a.txt"]


def test_two_reports_at_once_do_not_mix(tmp_path):
    with (
        new_assets(tmp_path / "assets"),
        pytest.raises(UserError, match="assets"),
        new_assets(tmp_path / "assets"),
    ):
        pass
    assert [entry.name for entry in (tmp_path / "assets").glob("[!.]*")] == ["1"]
