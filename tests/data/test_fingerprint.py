"""Processes that see different training splits must stop before training."""

import pytest
from PIL import Image

from zigma_pl.data import Digits, ImageFolder
from zigma_pl.data.sources.videos import ClipCutter, FixedClips, VideoItem


@pytest.fixture
def write(tmp_path):
    def write_pictures(folder, names):
        (tmp_path / folder).mkdir()
        for name in names:
            Image.new("RGB", (4, 4)).save(tmp_path / folder / f"{name}.png")
        return ImageFolder(str(tmp_path / folder), validation_share=0, test_share=0)

    return write_pictures


def test_equal_names_below_different_roots_are_the_same_split(write):
    one, other = write("one", "abc"), write("other", "abc")
    assert one.split_fingerprint("train") == other.split_fingerprint("train")


@pytest.mark.parametrize("names", ["ab", "abcd", "abd"], ids=["one less", "one more", "another"])
def test_other_names_are_another_split(write, names):
    assert write("one", "abc").split_fingerprint("train") != write("other", names).split_fingerprint("train")


def test_splits_without_files_have_a_fingerprint_too():
    prints = [Digits().split_fingerprint(split) for split in ("train", "validation", "test")]
    assert len(set(prints)) == 3
    assert prints[0] == Digits(seed=5).split_fingerprint("train")


def test_videos_are_named_by_folder_and_file(tmp_path):
    def names(*paths, clips=1):
        videos = [VideoItem(tmp_path / path) for path in paths]
        return list(FixedClips(videos, ClipCutter(2, 1, 8, "loop"), clips, "centre").item_names())

    assert names("here/A/v.avi") == names("there/A/v.avi") != names("here/B/v.avi")
    assert len(names("A/v.avi", clips=3)) == 3
