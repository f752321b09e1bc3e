import re
from fractions import Fraction

import av
import numpy as np
import pytest

from zigma_pl.data.synthetic.clips import MOTIONS, draw_frames, write_ucf101, write_video
from zigma_pl.data.video_files import open_video


def written(folder, num_clips, height_px=16, shortest_frames=3):
    folder.mkdir()
    write_ucf101(folder, num_clips, height_px, shortest_frames)
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def listed(files, name):
    content = files[f"ucfTrainTestlist/{name}.txt"].decode()
    assert content.endswith("\r\n")  # as published
    return content.split("\r\n")[:-1]


@pytest.mark.parametrize("num_clips", [15, 33, 160])
def test_layout_and_splits_are_the_published_ones(tmp_path, num_clips):
    files = written(tmp_path / "ucf", num_clips)
    videos = {name.removeprefix("UCF-101/") for name in files if name.endswith(".avi")}
    assert len(videos) == num_clips
    assert listed(files, "classInd") == [f"{number} {name}" for number, name in enumerate(MOTIONS, 1)]
    numbers = {name: number for number, name in enumerate(MOTIONS, 1)}
    for fold, test_groups in ((1, range(1, 8)), (2, range(8, 15)), (3, range(15, 22))):
        train, test = listed(files, f"trainlist0{fold}"), listed(files, f"testlist0{fold}")
        assert train == [f"{line.split(' ')[0]} {numbers[line.split('/')[0]]}" for line in train]
        names = [line.split(" ")[0] for line in train]
        assert sorted([*names, *test]) == sorted(videos)
        assert all(int(name[-10:-8]) in test_groups for name in test)
        assert not any(int(name[-10:-8]) in test_groups for name in names)
        assert {name.split("/")[0] for name in test} == {name.split("/")[0] for name in names} == set(MOTIONS)


def test_videos_are_mpeg4_of_varying_length_and_rate_some_with_b_frames(tmp_path):
    written(tmp_path / "ucf", 60, 16, 5)
    lengths, rates, b_frames = set(), set(), set()
    for path in (tmp_path / "ucf").rglob("*.avi"):
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            assert (stream.codec_context.name, stream.width, stream.height) == ("mpeg4", 22, 16)
            rates.add(stream.average_rate)
            b_frames.add(stream.codec_context.has_b_frames)
        with open_video(path) as video:
            lengths.add(video.num_frames)
    assert min(lengths) >= 5
    assert len(lengths) > 5
    assert rates == {Fraction(25), Fraction(30000, 1001)}
    assert b_frames == {True, False}


def test_two_builds_are_equal_byte_for_byte(tmp_path):
    files = written(tmp_path / "first", 15)
    assert files == written(tmp_path / "second", 15)
    assert not any(re.search(rb"Lav[cf]\d", content) for content in files.values())  # no version of the encoder in them


@pytest.mark.parametrize("class_name", MOTIONS)
def test_clips_move_and_survive_coding(tmp_path, class_name):
    drawn = [np.asarray(frame).astype(float) for frame in draw_frames(class_name, 1, 1, 12, 48)]
    again, sibling, stranger = (draw_frames(class_name, *place, 12, 48) for place in ((1, 1), (1, 2), (9, 1)))
    assert np.array_equal(again[3], drawn[3])
    assert again[0].getpixel((0, 0)) == sibling[0].getpixel((0, 0))  # one recording, another moment
    assert not np.array_equal(sibling[0], drawn[0])
    assert not np.array_equal(stranger[0], drawn[0])
    assert np.mean([np.abs(drawn[n + 1] - drawn[n]).mean() for n in range(11)]) > 0.3
    write_video(tmp_path / "clip.avi", again, Fraction(25), num_b_frames=1)
    with open_video(tmp_path / "clip.avi") as video:
        assert video.num_frames == 12
        for found, frame in zip(video.read(0, 12), drawn, strict=True):
            assert np.abs(np.asarray(found) - frame).mean() < 4
