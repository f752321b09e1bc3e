from itertools import islice

import numpy as np
import pytest
import torch
from data.written_videos import write

from zigma_pl.core.errors import UserError
from zigma_pl.data.sources.videos import VideoDataModule, VideoItem

LENGTHS = (30, 12, 21)


class Numbered(VideoDataModule):
    """Three videos; frame n of video v is n everywhere in red, v in green, and brighter to the right in blue."""

    synthetic_version = 1

    def __init__(self, root, **options):
        super().__init__(
            str(root), **{"num_frames": 4, "image_size_px": 8, "batch_size": 3, "horizontal_flip": True, **options}
        )

    def write_synthetic(self, folder):
        raise NotImplementedError

    def load_split(self, split):
        return [VideoItem(self.folder / f"{video}.avi", class_id=video) for video in range(3)]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    for video, num_frames in enumerate(LENGTHS):
        frames = np.empty((num_frames, 8, 12, 3), dtype=np.uint8)
        frames[..., 0] = np.arange(num_frames)[:, None, None]
        frames[..., 1] = video
        frames[..., 2] = 10 * np.arange(12)
        write(folder / f"{video}.avi", frames)
    return folder


def frames_of(clip):
    """Return the frame numbers of a clip, having checked that it is one video's."""
    assert clip.shape == (4, 3, 8, 8)
    assert clip[:, 1].unique().numel() == 1
    assert (clip[:, 0].flatten(1) == clip[:, 0, :1, 0]).all()
    return clip[:, 0, 0, 0].tolist()


def seen(loader, num_batches=None):
    """Return (sample id, video, frame numbers, whether mirrored) of every sample."""
    rows = []
    for raw in islice(loader, num_batches):
        for sample_id, clip, class_id in zip(raw.sample_ids.tolist(), raw.images, raw.class_ids.tolist(), strict=True):
            assert int(clip[0, 1, 0, 0]) == class_id
            mirrored = (clip[:, 2, :, 0] > clip[:, 2, :, -1]).flatten()
            assert mirrored.all() or not mirrored.any()  # every frame alike
            rows.append((sample_id, class_id, frames_of(clip), bool(mirrored[0])))
    return rows


def loaded(root, **options):
    data = Numbered(root, **options)
    data.setup("fit")
    return data


def test_clips_are_cut_out_of_the_middle(root):
    clip = Numbered(root).pixel_items("train")[0].pixels
    assert clip[0, 2, 0].tolist() == [10 * column for column in range(2, 10)]


@pytest.mark.parametrize("stride", [1, 3])
def test_random_starts_reach_every_place_and_no_other(root, stride):
    rows = seen(loaded(root, frame_stride=stride).train_dataloader(), 200)
    assert len(rows) == 600
    for video, num_frames in enumerate(LENGTHS):
        clips = [frames for _, number, frames, _ in rows if number == video]
        assert all(frames == list(range(frames[0], frames[0] + 4 * stride, stride)) for frames in clips)
        assert {frames[0] for frames in clips} == set(range(num_frames - 3 * stride))
    assert 220 < sum(mirrored for *_, mirrored in rows) < 380


def test_starts_are_functions_of_seed_and_sample_id(root):
    rows = seen(loaded(root).train_dataloader(), 6)
    assert rows == seen(loaded(root, batch_size=9, num_workers=2).train_dataloader(), 2)
    drawn = [
        [frames_of(samples[sample_id, 0].image) for sample_id in range(9)]
        for samples in (Numbered(root, seed=seed).live_samples("train", horizontal_flip=False) for seed in (0, 0, 1))
    ]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len({str(row[2]) for row in rows if row[1] == 0}) > 1  # each epoch another clip


@pytest.mark.parametrize(
    ("options", "starts"),
    [
        ({}, [[13], [4], [9]]),
        ({"clip_start": "first"}, [[0], [0], [0]]),
        ({"clips_per_video": 3}, [[4, 13, 22], [1, 4, 7], [3, 9, 15]]),
        ({"clips_per_video": 3, "clip_start": "first"}, [[0, 9, 18], [0, 3, 6], [0, 6, 12]]),
    ],
    ids=str,
)
def test_fixed_clips_are_evenly_spread(root, options, starts):
    data = loaded(root, **options)
    flat = [start for of_video in starts for start in of_video]
    assert [frames_of(item.pixels)[0] for item in map(data.pixel_items("test").__getitem__, range(len(flat)))] == flat
    evaluated = seen(data.val_dataloader())
    assert [frames[0] for _, _, frames, _ in evaluated] == flat
    assert not any(mirrored for *_, mirrored in evaluated)


@pytest.mark.parametrize("clip_start", ["centre", "first"])
def test_training_on_fixed_clips(root, clip_start):
    data = loaded(root, clip_start=clip_start, clips_per_video=2)
    fixed = {str((video, frames)) for _, video, frames, _ in seen(data.val_dataloader())}
    assert {str((video, frames)) for _, video, frames, _ in seen(data.train_dataloader(), 8)} == fixed
    assert len(fixed) == 6


def test_a_video_as_long_as_a_clip_and_one_too_short(root):
    whole = Numbered(root, num_frames=12).pixel_items("test")[1].pixels
    assert whole[:, 0, 0, 0].tolist() == list(range(12))
    with pytest.raises(UserError, match=r"1\.avi has 12 frames.* 13: .*data\.short_videos") as error:
        Numbered(root, frame_stride=4).pixel_items("test")[1]
    assert "\n" not in str(error.value)
    looped = Numbered(root, frame_stride=4, short_videos="loop").pixel_items("test")
    assert frames_of(looped[1].pixels) == [0, 4, 8, 0]
    assert frames_of(looped[2].pixels) == [4, 8, 12, 16]


def test_batch_and_latents(root):
    data = loaded(root)
    assert data.latent_shape == (4, 3, 8, 8)
    assert (data.num_frames, data.num_classes) == (4, None)
    batch = data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)
    assert batch.latents.shape == (3, 4, 3, 8, 8)
    raw = next(iter(data.val_dataloader()))
    assert raw.images.dtype == torch.uint8
    latents = data.on_after_batch_transfer(raw, 0).latents
    torch.testing.assert_close(data.decode(latents), raw.images / 255, rtol=0, atol=1e-6)


def test_description_names_what_decides_the_clips(root):
    described = Numbered(root, frame_stride=2, clips_per_video=3).described()
    expected = {"num_frames": 4, "frame_stride": 2, "clips_per_video": 3, "clip_start": "centre"}
    assert {name: described[name] for name in expected} == expected
    assert Numbered(root, frame_stride=2, clips_per_video=3, clip_start="centre").described() == described
    assert Numbered(root, clip_start="first").described()["clip_start"] == "first"


@pytest.mark.parametrize("num_workers", [0, 1])
def test_bad_video_out_of_a_worker_is_one_line(root, tmp_path, num_workers):
    for video in range(3):
        (tmp_path / f"{video}.avi").write_bytes((root / f"{video}.avi").read_bytes())
    (tmp_path / "1.avi").write_bytes(b"")
    data = loaded(tmp_path, num_workers=num_workers)
    with pytest.raises(UserError, match=r"^cannot decode the video .*1\.avi .*replace it") as error:
        seen(data.train_dataloader(), 3)
    assert "\n" not in str(error.value)
