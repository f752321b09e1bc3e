"""Files beside the page. Kinds: whole or not at all; images that others wrote; files of an earlier report."""

from contextlib import suppress

import numpy as np
import pytest
from PIL import Image

from zigma_pl.core.errors import UserError
from zigma_pl.suite.report.assets import Assets, RunAssets, new_assets


def save(path, side):
    """Write noise, which no lossless format makes smaller."""
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)).save(path)
    return path


@pytest.fixture
def assets(tmp_path):
    folder = tmp_path / "report" / "assets"
    folder.mkdir(parents=True)
    return Assets(folder)


def test_a_small_image_is_copied_unchanged(tmp_path, assets):
    source = save(tmp_path / "small.png", 20)
    address, size = assets.add_image(source, "pictures/grid")
    assert address.startswith("assets/pictures/grid-")
    assert size == (20, 20)
    assert (assets.folder.parent / address).read_bytes() == source.read_bytes()


def test_a_large_image_takes_a_fraction_and_looks_the_same(tmp_path, assets):
    smooth = np.add.outer(np.arange(300), np.arange(300)) / 600 * 255
    noise = np.random.default_rng(0).normal(0, 2, (300, 300, 3))
    pixels = np.clip(smooth[..., None] + noise, 0, 255).astype(np.uint8)
    source = tmp_path / "large.png"
    Image.fromarray(pixels).save(source)
    address, size = assets.add_image(source, "grid")
    stored = assets.folder.parent / address
    assert (stored.suffix, size) == (".webp", (300, 300))
    assert stored.stat().st_size < source.stat().st_size / 4
    with Image.open(stored) as picture:
        assert np.abs(np.asarray(picture, dtype=float) - pixels).mean() < 3


def test_files_of_one_name_are_kept_apart(assets):
    addresses = [assets.add(text, "a b.txt") for text in (b"one", b"two", b"one")]
    assert addresses[0] == addresses[2] != addresses[1]
    assert " " not in addresses[0]
    assert {path.read_bytes() for path in assets.folder.iterdir()} == {b"one", b"two"}


def test_images_of_a_record_come_from_an_earlier_report_of_the_same_record(tmp_path):
    record = tmp_path / "sweep.json"
    record.write_text("1")
    image = save(tmp_path / "grid.png", 20)
    with new_assets(tmp_path / "first" / "assets") as first:
        run = RunAssets(first, record, "smoke")
        address, _ = run.image(image, "grid")
        video = run.file(record, "clip")
    with new_assets(tmp_path / "second" / "assets", [tmp_path / "first" / "assets"]) as second:
        run = RunAssets(second, record, "smoke")
        assert run.image(None, "grid") == (address, (20, 20))
        assert run.file(None, "clip") == video
        assert run.image(None, "other") is None
        assert run.file(None, "other") is None
        other = save(tmp_path / "other.png", 30)
        assert run.image(other, "grid")[1] == (30, 30)  # its own image is preferred
        record.write_text("2")
        assert RunAssets(second, record, "smoke").image(None, "grid") is None


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n"


@pytest.mark.parametrize("content", [b"no picture", b"", EPS, b"\x89PNG\r\n\x1a\n" + bytes(100_000)])
def test_what_is_no_image_is_not_copied(tmp_path, assets, content):
    (tmp_path / "broken.png").write_bytes(content)
    assert assets.add_image(tmp_path / "broken.png", "broken") is None
    assert not list(assets.folder.glob("broken*"))


def test_a_long_thin_image_is_copied_unchanged(tmp_path, assets):
    pixels = np.random.default_rng(0).integers(0, 256, (20_000, 2, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "thin.png")
    assert assets.add_image(tmp_path / "thin.png", "thin")[0].endswith(".png")


def texts(folder):
    return sorted(path.read_text() for path in folder.rglob("*.txt"))


def test_earlier_assets_stay_until_the_page_is_replaced(tmp_path):
    folder = tmp_path / "assets"
    with new_assets(folder) as first:
        first.add(b"old", "a/a.txt")
        first.add(b"same", "b.txt")
    with suppress(RuntimeError), new_assets(folder) as second:
        second.add(b"new", "c/a.txt")
        assert texts(folder) == ["new", "old", "same"]
        raise RuntimeError
    assert texts(folder) == ["old", "same"]
    assert not (folder / "c").exists()
    (folder / "d.txt").write_text("of a killed report")
    with new_assets(folder) as third:
        third.add(b"new", "c/a.txt")
        third.add(b"same", "b.txt")
    assert texts(folder) == ["new", "same"]
    assert not (folder / "a").exists()


def test_two_reports_at_once_do_not_mix(tmp_path):
    with (
        new_assets(tmp_path / "assets"),
        pytest.raises(UserError, match="another process"),
        new_assets(tmp_path / "assets"),
    ):
        pass
    assert not list((tmp_path / "assets").glob("[!.]*"))
