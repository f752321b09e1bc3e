import json

import numpy as np
import pytest
import torch
from evaluation.fake_extractor import FakeExtractor
from PIL import Image

from zigma_pl.core.errors import UserError
from zigma_pl.core.files import sha256
from zigma_pl.data import Digits, ImageDataModule
from zigma_pl.data.images import ImageDataset, ImageItem
from zigma_pl.evaluation.features import extract
from zigma_pl.evaluation.held_out import RealPictures, describe_real_pictures, real_chunks
from zigma_pl.evaluation.reference import ReferenceFiles, load_or_make


class Reference:
    """A reference of the test digits, counting how often it is made."""

    def __init__(self, folder, datamodule=None, weights="00"):
        datamodule = datamodule or Digits()
        self.pictures, self.num_made = RealPictures(datamodule, "test"), 0
        self.extractor = FakeExtractor(weights)
        data = describe_real_pictures(datamodule, "test", self.pictures)
        self.files = ReferenceFiles(folder, data, self.extractor.fingerprint(), "lite")

    def get(self, *, with_features=False):
        def make():
            self.num_made += 1
            chunks = real_chunks(self.pictures, num_workers=0)
            return extract(self.extractor, chunks, len(self.pictures), num_frames=None, keep=with_features)

        return load_or_make(self.files, make, with_features=with_features)


def test_reference_is_made_once_and_again_only_for_what_it_lacks(tmp_path, capsys):
    reference = Reference(tmp_path)
    first = reference.get()
    assert first.features is None
    assert first.num_real == first.statistics.count == 179
    assert "179 real" in capsys.readouterr().out
    assert reference.get().sha256 == first.sha256
    assert reference.num_made == 1
    expected = torch.stack([reference.pictures[index] for index in range(179)])
    torch.testing.assert_close(reference.get(with_features=True).features, reference.extractor(expected))
    assert reference.num_made == 2
    again = Reference(tmp_path)
    assert again.get(with_features=True).sha256 == reference.get().sha256 == first.sha256
    torch.testing.assert_close(first.statistics.mean, reference.extractor(expected).double().mean(0))
    assert again.num_made == 0
    described = json.loads(reference.files.description.read_text())
    assert described["data"]["dataset"] == "Digits"
    assert described["extractor"] == {"name": "lite", "weights_sha256": "00"}


def test_reference_of_another_extractor_is_refused(tmp_path):
    Reference(tmp_path).get()
    with pytest.raises(UserError, match=r"weights_sha256 '00', .*'11': use"):
        Reference(tmp_path, weights="11").get()


@pytest.mark.parametrize("file", ["statistics", "features"])
def test_damaged_reference_is_not_made_again_in_silence(file, tmp_path):
    reference = Reference(tmp_path)
    reference.get(with_features=True)
    path = getattr(reference.files, file)
    content = bytearray(path.read_bytes())
    content[-50] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"{path.name} does not match .*: remove both"):
        reference.get(with_features=True)
    assert reference.num_made == 1


def test_half_written_description_is_named(tmp_path):
    reference = Reference(tmp_path)
    reference.get()
    described = json.loads(reference.files.description.read_text())
    wrong = [
        '{"format_version": 1',
        json.dumps(described | {"format_version": 2}),
        json.dumps(described | {"files": {"../elsewhere.npz": "0" * 64}}),
        json.dumps(described | {"files": {"name": "no hash"}}),
        "[" * 10**5,
    ]
    for text in wrong:
        reference.files.description.write_text(text)
        with pytest.raises(UserError, match=r"lite\.json: cannot be used") as caught:
            reference.get()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "features", [np.zeros((179, 4)), np.zeros((178, 4), np.float32), np.full((179, 4), np.nan, np.float32)]
)
def test_features_of_another_shape_or_without_a_value_are_refused(features, tmp_path):
    reference = Reference(tmp_path)
    reference.get(with_features=True)
    np.save(reference.files.features, features)
    described = json.loads(reference.files.description.read_text())
    described["files"][reference.files.features.name] = sha256(reference.files.features)
    reference.files.description.write_text(json.dumps(described))
    with pytest.raises(UserError, match=r"features\.npy is not a file of features"):
        reference.get(with_features=True)


class Greys(ImageDataset):
    def __init__(self, darkest):
        self.darkest = darkest

    def __len__(self):
        return 5

    def __getitem__(self, index):
        return ImageItem(Image.new("L", (8, 8), self.darkest + index))


class GreyData(ImageDataModule):
    """Sets that are told apart by nothing but their pixels, as folders are that have the same options."""

    darkest = 0

    def load_split(self, split):
        return Greys(self.darkest)


def test_other_pictures_have_another_reference(tmp_path):
    data = GreyData(image_size_px=8)
    same, one = Reference(tmp_path, data), Reference(tmp_path, data)
    darker = GreyData(image_size_px=8)
    darker.darkest = 1
    other = Reference(tmp_path, darker)
    assert one.files.description == same.files.description
    assert one.files.description != other.files.description
    assert one.get().sha256 != other.get().sha256
    assert other.num_made == 1


def test_chunks_of_all_processes_are_those_of_one():
    pictures = RealPictures(Digits(), "test")
    whole = list(real_chunks(pictures, num_workers=0))
    parts = [list(real_chunks(pictures, 0, rank, 2)) for rank in range(2)]
    assert torch.cat([chunk.sample_ids for chunk in whole]).tolist() == list(range(179))
    for number, chunk in enumerate(whole):
        assert torch.equal(chunk.pictures, parts[number % 2][number // 2].pictures)
        assert torch.equal(chunk.sample_ids, parts[number % 2][number // 2].sample_ids)
