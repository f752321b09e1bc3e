"""The tool that writes Fashion-MNIST. Kinds: files in another order of bytes; splits or classes that are mixed up."""

import gzip
import importlib
import sys

import numpy as np
import pytest

from zigma_pl.data import MMCelebAHQ

SIZES = {"train": 9, "t10k": 4}  # more than are used


def pixels(split, index):
    """An image whose left half has a level of its own."""
    image = np.zeros((28, 28), np.uint8)
    image[:, :14] = 20 * index + (5 if split == "t10k" else 15)
    return image


def idx(array):
    return bytes((0, 0, 8, array.ndim)) + b"".join(size.to_bytes(4, "big") for size in array.shape) + array.tobytes()


@pytest.fixture
def published(tmp_path):
    folder = tmp_path / "published"
    folder.mkdir()
    for split, size in SIZES.items():
        images = np.stack([pixels(split, index) for index in range(size)])
        labels = np.arange(size, dtype=np.uint8)[::-1]
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            (folder / f"{split}-{kind}-ubyte.gz").write_bytes(gzip.compress(idx(array)))
    return folder


@pytest.fixture
def run(repository, monkeypatch):
    monkeypatch.syspath_prepend(repository / "tools")
    tool = importlib.import_module("fashion_mnist")
    monkeypatch.setattr(tool, "LARGEST", {"train": 7, "test": 3})

    def main(*arguments):
        monkeypatch.setattr(sys, "argv", ["fashion_mnist.py", *map(str, arguments)])
        tool.main()

    return main


def test_splits_images_and_captions_are_the_published_ones(published, run, tmp_path):
    run(published, tmp_path / "set")
    data = MMCelebAHQ(str(tmp_path / "set"), image_size_px=32)
    for split, file, size in (("train", "train", 7), ("test", "t10k", 3)):
        items = data.load_split(split)
        assert len(items) == size
        for index in range(size):
            image = np.asarray(items[index].image).astype(int)
            assert image.shape == (32, 32, 3)
            expected = np.pad(pixels(file, index), 2)
            assert np.abs(image - expected[:, :, None]).max() <= 2
    things = [data.load_split("train")[index].captions[0] for index in range(3)]
    assert things == ["A photo of a bag.", "A photo of a sneaker.", "A photo of a shirt."]
    captions = data.load_split("test")[0].captions  # class 3
    assert len(set(captions)) == 6
    assert all("dress" in caption.lower() for caption in captions)


def test_the_archive_gives_the_same_set(published, run, tmp_path):
    run(published, tmp_path / "small.tar.xz")
    run(tmp_path / "small.tar.xz", tmp_path / "from_archive")
    run(published, tmp_path / "from_folder")
    one, other = (
        {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        for folder in (tmp_path / "from_archive", tmp_path / "from_folder")
    )
    assert one == other
    assert len(one) == 2 * 10 + 4


def test_a_missing_file_is_named(published, run, tmp_path, capsys):
    (published / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(SystemExit):
        run(published, tmp_path / "set")
    assert "t10k-labels-idx1-ubyte.gz is missing" in capsys.readouterr().err
    assert not (tmp_path / "set").exists()


def test_damaged_sources_are_one_line(published, run, tmp_path, capsys):
    archives = [tmp_path / f"{name}.tar.xz" for name in ("empty", "cut", "changed")]
    run(published, archives[0])
    whole = archives[0].read_bytes()
    middle = len(whole) // 2
    for archive, content in zip(archives, (b"", whole[:middle], whole[:middle] + b"x" * middle), strict=True):
        archive.write_bytes(content)
    (published / "t10k-labels-idx1-ubyte.gz").write_bytes(b"no gzip")
    for source in (*archives, published):
        with pytest.raises(SystemExit):
            run(source, tmp_path / "set")
        assert str(source) in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "set").exists()
