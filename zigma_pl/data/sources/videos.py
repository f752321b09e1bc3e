"""From videos to clips: choosing where a clip starts, cropping it, and the base class of video data sets."""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from PIL import Image

from zigma_pl.core.errors import UserError
from zigma_pl.core.ranges import check_whole_numbers
from zigma_pl.data.base import Split
from zigma_pl.data.images import PixelDataset, PixelItem, resize_and_crop, to_uint8_tensor
from zigma_pl.data.samples import PixelSamples, SplitSamples, draw
from zigma_pl.data.sources.downloaded import DownloadedDataModule
from zigma_pl.data.video_files import Video, import_av, open_video

ClipStart = Literal["random", "centre", "first"]
ShortVideos = Literal["error", "loop"]


class VideoItem(NamedTuple):
    """One video of a data set, not opened yet.

    path: the video file.
    class_id: class in [0, num_classes), or None.
    captions: all captions of the video, at least one, or None if the data set has none.
    """

    path: Path
    class_id: int | None = None
    captions: list[str] | None = None


@dataclass(frozen=True)
class ClipCutter:
    """Reads clips from videos.

    Attributes:
        num_frames: frames per clip, F.
        frame_stride: a clip consists of every frame_stride-th frame.
        image_size_px: side of the square frames.
        short_videos: what to do with a video of fewer than (F - 1) frame_stride + 1 frames.
    """

    num_frames: int
    frame_stride: int
    image_size_px: int
    short_videos: ShortVideos

    @property
    def span(self) -> int:
        """Number of video frames from the first to the last frame of a clip."""
        return (self.num_frames - 1) * self.frame_stride + 1

    def cut(self, item: VideoItem, choose_start: Callable[[int], int]) -> PixelItem:
        """Read one clip, (F, 3, image_size_px, image_size_px).

        Args:
            item: the video.
            choose_start: maps the number of possible start frames to the index of one of them.

        Raises:
            UserError: the video cannot be decoded, or is too short and `short_videos` is "error".
        """
        with open_video(item.path) as video:
            frames = self._frames(video, choose_start)
        pixels = [to_uint8_tensor(resize_and_crop(frame, self.image_size_px)) for frame in frames]
        return PixelItem(torch.stack(pixels), item.class_id, item.captions)

    def _frames(self, video: Video, choose_start: Callable[[int], int]) -> list[Image.Image]:
        num_starts = video.num_frames - self.span + 1
        if num_starts > 0:
            return video.read(choose_start(num_starts), self.num_frames, self.frame_stride)
        if self.short_videos == "error":
            raise UserError(
                f"the video {video.path} has {video.num_frames} frames, but a clip needs {self.span}: lower "
                "data.num_frames or data.frame_stride, or set data.short_videos to 'loop' to repeat short videos"
            )
        whole = video.read(0, video.num_frames)
        return [whole[i * self.frame_stride % len(whole)] for i in range(self.num_frames)]


class FixedClips(PixelDataset):
    """Clips with fixed start frames: clip n of a video is item clips_per_video * video + n.

    The possible start frames are divided into `clips_per_video` equal parts; each clip starts in the centre or at the
    first frame of its part.
    """

    def __init__(
        self,
        videos: Sequence[VideoItem],
        cutter: ClipCutter,
        clips_per_video: int,
        within_part: Literal["centre", "first"],
    ) -> None:
        self.videos = videos
        self.cutter = cutter
        self.clips_per_video = clips_per_video
        self.within_part = within_part

    def __len__(self) -> int:
        return len(self.videos) * self.clips_per_video

    def __getitem__(self, index: int) -> PixelItem:
        video, clip = divmod(index, self.clips_per_video)
        fraction = (clip + 0.5 * (self.within_part == "centre")) / self.clips_per_video
        return self.cutter.cut(self.videos[video], lambda num_starts: int(fraction * num_starts))

    def item_names(self) -> Iterable[str]:
        """Return a name of each clip: folder and file name of its video, and its number."""
        names = ("/".join(video.path.parts[-2:]) for video in self.videos)
        return (f"{name}, clip {clip}" for name in names for clip in range(self.clips_per_video))


class VideoSamples(PixelSamples):
    """One clip per video; its start, mirroring and caption are chosen by (seed, sample id).

    Either all frames of a clip are mirrored, or none.
    """

    def __init__(self, videos: Sequence[VideoItem], cutter: ClipCutter, *, seed: int, horizontal_flip: bool) -> None:
        super().__init__(FixedClips(videos, cutter, 1, "centre"), seed=seed, horizontal_flip=horizontal_flip)
        self.videos = videos
        self.cutter = cutter

    def item(self, sample_id: int, index: int) -> PixelItem:
        """Return a clip of video `index`, with a random start chosen by the sample id."""
        return self.cutter.cut(self.videos[index], lambda num_starts: draw(self.seed, "clip", sample_id, num_starts))


class VideoDataModule(DownloadedDataModule):
    """Base class of data modules of videos. Subclasses implement `load_split`. Needs PyAV, the optional extra `video`.

    Evaluation and `prepare` use `clips_per_video` fixed clips of each video. With `clip_start` "random", training uses
    one clip of each video per epoch, with a start chosen by (seed, sample id). With another `clip_start`, or with a
    cache, which contains no pixels, training uses the fixed clips too.

    Args:
        root: folder of the data set.
        num_frames: frames per clip.
        frame_stride: use every frame_stride-th frame of the video, whatever its frame rate.
        clip_start: where training clips start: "random" chooses a new start in each epoch; "centre" and "first" use the
            fixed clips, which start in the centre or at the first frame of equal parts of the video.
        clips_per_video: number of fixed clips per video, evenly spaced.
        short_videos: what to do with videos shorter than a clip: "error" raises an error, "loop" repeats them.
        options: options of `DownloadedDataModule`.
    """

    def __init__(
        self,
        root: str,
        num_frames: int = 16,
        frame_stride: int = 1,
        clip_start: ClipStart = "random",
        clips_per_video: int = 1,
        short_videos: ShortVideos = "error",
        **options: Any,
    ) -> None:
        super().__init__(root=root, **options)
        check_whole_numbers("data", num_frames=num_frames, frame_stride=frame_stride, clips_per_video=clips_per_video)
        self.num_frames = num_frames
        self.frame_stride = frame_stride
        self.clip_start = clip_start
        self.clips_per_video = clips_per_video
        self.short_videos = short_videos
        self.cutter = ClipCutter(num_frames, frame_stride, self.image_size_px, short_videos)

    @abstractmethod
    def load_split(self, split: Split) -> Sequence[VideoItem]:
        """List the videos of one split.

        Raises:
            UserError: the files are missing; the message gives folder, expected layout and remedy.
        """

    def open_pixel_items(self, split: Split) -> FixedClips:
        """Open one split as its fixed clips."""
        return FixedClips(self._videos(split), self.cutter, self.clips_per_video, self._within_part)

    def described(self) -> dict[str, Any]:
        """Return, as plain values, everything that determines the fixed clips, equal for "random" and "centre"."""
        return {**super().described(), "clip_start": self._within_part}

    def live_samples(self, split: Split, *, horizontal_flip: bool) -> SplitSamples:
        """Open one split as the loader reads it: clips with random starts in training, if enabled, else fixed clips."""
        if split == "train" and self.clip_start == "random":
            return VideoSamples(self._videos(split), self.cutter, seed=self.seed, horizontal_flip=horizontal_flip)
        return super().live_samples(split, horizontal_flip=horizontal_flip)

    def _videos(self, split: Split) -> Sequence[VideoItem]:
        import_av()  # raises here rather than at the first clip if PyAV is missing
        return self.load_split(split)

    @property
    def _within_part(self) -> Literal["centre", "first"]:
        return "first" if self.clip_start == "first" else "centre"
