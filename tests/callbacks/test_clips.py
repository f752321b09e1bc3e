import importlib.util

import numpy as np
import pytest
import torch
from PIL import Image

from zigma_pl.core import clips as clips_module
from zigma_pl.core.clips import (
    can_write_mp4,
    check_frames_per_second,
    clip_suffix,
    read_clip,
    save_clip,
    save_gif,
    stills,
    tile_clips,
    to_clip,
)
from zigma_pl.core.errors import UserError
from zigma_pl.core.grid import to_uint8


def moving_bar(num_frames=5, side=32, shift=0):
    """A white bar on black that goes down by a quarter of the side in each frame, and begins again."""
    frames = torch.zeros(num_frames, 3, side, side)
    for frame in range(num_frames):
        first = (frame + shift) % 4 * side // 4
        frames[frame, :, first : first + side // 4] = 1.0
    return to_clip(to_uint8(frames[None])[0])


def bar_rows(clip):
    """Return in which quarter the bar of each frame is."""
    return [int(np.asarray(frame.convert("L")).mean(1).reshape(4, -1).mean(1).argmax()) for frame in clip]


def test_videos_become_eight_bit_frames():
    videos = torch.linspace(-0.5, 1.5, 2 * 3 * 3 * 4 * 5).reshape(2, 3, 3, 4, 5)
    frames = to_uint8(videos)
    assert frames.shape == (2, 3, 4, 5, 3)
    assert torch.equal(frames[1], to_uint8(videos[1]))
    assert [frame.mode for frame in to_clip(to_uint8(torch.zeros(1, 2, 1, 4, 4))[0])] == ["L", "L"]


@pytest.mark.parametrize("suffix", [".gif", ".mp4"])
def test_written_clips_show_the_same_frames_in_the_same_order(suffix, tmp_path):
    path = tmp_path / "deep" / f"clip{suffix}"
    for clip in (moving_bar(3), moving_bar(7)):  # the second replaces the first
        save_clip(clip, path, 8)
    found = read_clip(path, 8)
    assert bar_rows(found) == [0, 1, 2, 3, 0, 1, 2]
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    for frame, expected in zip(found, clip, strict=True):
        difference = np.abs(np.asarray(frame, dtype=float) - np.asarray(expected, dtype=float))
        assert difference.mean() < 3


@pytest.mark.parametrize("suffix", [".gif", ".mp4"])
@pytest.mark.parametrize("frames_per_second", [1, 8, 30, 50])
def test_frames_that_stand_still_count_too(suffix, frames_per_second, tmp_path):
    moving = moving_bar(2)
    clip = [moving[0]] * 9 + [moving[1]] * 7
    save_clip(clip, tmp_path / f"clip{suffix}", frames_per_second)
    assert bar_rows(read_clip(tmp_path / f"clip{suffix}", frames_per_second)) == [0] * 9 + [1] * 7


def test_mp4_plays_at_its_rate_and_odd_sides_are_filled_up(tmp_path):
    import av

    save_clip([Image.new("RGB", (33, 17), "white")] * 6, tmp_path / "odd.mp4", 12)
    with av.open(tmp_path / "odd.mp4") as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.average_rate, stream.frames) == ("h264", 12, 6)
        assert (stream.width, stream.height) == (34, 18)
        frame = next(container.decode(video=0)).to_ndarray(format="rgb24")
    assert frame[:16, :32].mean() > 245
    assert frame[:, 33].mean() < 60


def test_gif_repeats_for_ever_at_its_rate(tmp_path):
    save_gif(moving_bar(4), tmp_path / "clip.gif", 10)
    with Image.open(tmp_path / "clip.gif") as image:
        assert (image.info["loop"], image.info["duration"], image.n_frames) == (0, 100, 4)


def test_tiles_move_together():
    clips = [moving_bar(4), moving_bar(4, shift=1), moving_bar(4, shift=2)]
    grid = tile_clips(clips, num_columns=2)
    assert len(grid) == 4
    assert grid[0].size == (2 * 130 + 2, 2 * 130 + 2)  # the frames of 32 are enlarged by 4
    pixels = np.asarray(grid[1])
    corners = [pixels[2:130, 2:130], pixels[2:130, 132:260], pixels[132:260, 2:130]]
    assert [bar_rows([Image.fromarray(corner)])[0] for corner in corners] == [1, 2, 3]
    labelled = tile_clips(clips, 2, ["one", "two", "three"])
    assert {frame.size for frame in labelled} == {(262, labelled[0].height)}
    assert labelled[0].height > 262


def test_stills_have_a_clip_in_each_row_and_large_frames_are_shrunk():
    clips = [moving_bar(3, side=64), moving_bar(3, side=64, shift=1)]
    picture = np.asarray(stills(clips))
    assert picture.shape == (2 * 130 + 2, 3 * 130 + 2, 3)
    cell = picture[132:260, 262:390]
    assert bar_rows([Image.fromarray(cell)]) == [3]
    assert stills([moving_bar(3, side=256)]).size == (3 * 130 + 2, 132)
    labelled = np.asarray(stills(clips, ["first", ""]))
    assert labelled.shape[0] > picture.shape[0]
    assert (labelled[132:148, 2:130] < 128).any()
    assert (labelled[132:148, 132:] == 255).all()


def test_without_pyav_clips_are_gifs(monkeypatch):
    assert can_write_mp4()
    assert clip_suffix() == ".mp4"
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(clips_module, "find_spec", lambda name: None if name == "av" else find_spec(name))
    assert not can_write_mp4()
    assert clip_suffix() == ".gif"


@pytest.mark.parametrize("rate", [0, 51])
def test_rates_out_of_range_are_explained(rate):
    with pytest.raises(UserError, match=f"samples.frames_per_second: .* from 1 to 50, got {rate}"):
        check_frames_per_second("samples", rate)
