import sys
import wave
from fractions import Fraction

import numpy as np
import pytest
from data.written_videos import decoded, mux, nothing_coded, packed, packets, pictures, write

from zigma_pl.core.errors import UserError
from zigma_pl.data.video_files import open_video


def read(path, *arguments):
    with open_video(path) as video:
        return [np.asarray(image) for image in video.read(*arguments)]


def count(path):
    with open_video(path) as video:
        return video.num_frames


def check_every_start(path, truth):
    """Compare three frames from each start, at strides 1 and 4, with all frames decoded in order."""
    assert count(path) == len(truth)
    for stride in (1, 4):
        for start in range(len(truth) - 2 * stride):
            found = read(path, start, 3, stride)
            assert all(np.array_equal(frame, truth[start + n * stride]) for n, frame in enumerate(found))


@pytest.mark.parametrize("rate", [Fraction(25), Fraction(30000, 1001), Fraction(15, 2)], ids=str)
@pytest.mark.parametrize("suffix", ["avi", "mkv"])
def test_lossless_frames_at_any_rate(tmp_path, suffix, rate):
    frames = pictures(21)
    check_every_start(write(tmp_path / f"video.{suffix}", frames, rate=rate), frames)


@pytest.mark.parametrize(
    ("name", "codec", "num_b_frames"),
    [
        ("intra.avi", "mjpeg", 0),
        ("plain.avi", "mpeg4", 0),
        ("b.avi", "mpeg4", 2),
        ("b.mp4", "mpeg4", 2),
        ("x264.mp4", "libx264", 2),
        ("x264.avi", "libx264", 2),
    ],
)
def test_frames_after_a_seek_are_those_of_decoding_all(tmp_path, name, codec, num_b_frames):
    pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    path = write(tmp_path / name, pictures(21), codec, pix_fmt, num_b_frames=num_b_frames)
    check_every_start(path, decoded(path))


def test_packed_b_frames(tmp_path):
    source = write(tmp_path / "b.avi", pictures(21), "mpeg4", "yuv420p", num_b_frames=1)
    path = mux(tmp_path / "packed.avi", packed(source), "mpeg4", like=source)
    truth = decoded(source)
    assert len(truth) == 21
    check_every_start(path, truth)


def test_a_frame_left_out_repeats_the_one_before(tmp_path):
    source = write(tmp_path / "whole.avi", pictures(21), "mpeg4", "yuv420p")
    contents = packets(source)
    contents[5] = contents[10] = nothing_coded()
    path = mux(tmp_path / "gaps.avi", contents, "mpeg4", like=source)
    coded = decoded(path)
    assert len(coded) == 19
    for gap in (5, 10):
        coded.insert(gap, coded[gap - 1])
    check_every_start(path, coded)


def test_seeking_does_not_decode_what_lies_before(tmp_path):
    source = write(tmp_path / "whole.avi", pictures(21), "mjpeg", "yuvj420p")
    contents = packets(source)
    contents[3] = bytes(len(contents[3]))
    path = mux(tmp_path / "damaged.avi", contents, "mjpeg", like=source)
    assert np.array_equal(read(path, 10, 1)[0], decoded(source)[10])
    with pytest.raises(UserError, match=r"cannot decode the video .*damaged\.avi"):
        read(path, 0, 8)


def test_size_that_changes_within_a_video(tmp_path):
    small = write(tmp_path / "small.avi", pictures(4, 32, 32), "mjpeg", "yuvj420p")
    large = write(tmp_path / "large.avi", pictures(4, 64, 48), "mjpeg", "yuvj420p")
    path = mux(tmp_path / "both.avi", packets(small) + packets(large), "mjpeg", like=small)
    assert [frame.shape for frame in read(path, 2, 4)] == [(32, 32, 3)] * 2 + [(48, 64, 3)] * 2


def test_counted_anew_when_the_file_has_changed(tmp_path):
    path = tmp_path / "video.avi"
    for num_frames in (9, 5):
        write(path, pictures(num_frames), "mpeg4", "yuv420p", num_b_frames=1)
        assert count(path) == num_frames


@pytest.mark.parametrize("damage", ["cut", "header", "text", "empty", "missing", "sound"])
def test_bad_video_is_one_line_that_names_it(tmp_path, damage):
    path = write(tmp_path / "v.avi", pictures(21), "mpeg4", "yuv420p")
    whole = path.read_bytes()
    contents = {"cut": whole[: len(whole) // 2], "header": whole[:300], "text": b"no video" * 99, "empty": b""}
    path.unlink()
    if damage == "sound":
        with wave.open(str(path), "wb") as sound:
            sound.setparams((1, 2, 8000, 0, "NONE", ""))
            sound.writeframes(bytes(800))
    elif damage != "missing":
        path.write_bytes(contents[damage])
    with pytest.raises(UserError, match="replace it") as error:
        read(path, 0, 3)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_without_pyav_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(UserError, match=r'pip install "zigma_pl\[video\]"'):
        count(tmp_path / "video.avi")
