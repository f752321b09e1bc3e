"""Reading exact frames of video files with PyAV (the optional extra `video`)."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, cached_property
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, NamedTuple

from PIL import Image

from zigma_pl.core.errors import UserError
from zigma_pl.core.files import open_regular

if TYPE_CHECKING:
    from av import VideoFrame
    from av.container import InputContainer

CONTAINERS = ("avi", "mov", "mp4", "matroska", "webm", "mpeg", "mpegts")
MAX_FRAME_PIXELS = 2**25  # 8192 x 4096
REMEDY = "replace it with an intact copy, or remove it from the data set"


def import_av() -> ModuleType:
    """Return PyAV.

    Raises:
        UserError: PyAV is not installed.
    """
    try:
        import av
    except ImportError as error:
        raise UserError('PyAV, which decodes videos, is not installed: pip install "zigma_pl[video]"') from error
    return av


@contextmanager
def open_video(path: Path) -> Iterator["Video"]:
    """Open a video file for reading.

    Raises:
        UserError: the file is missing, not a regular file, in none of `CONTAINERS`, or does not decode. Decoding
            errors inside the block are converted too.
    """
    av = import_av()
    try:
        open_regular(path).close()
        # An absolute path is never parsed as a URL; the whitelists exclude playlists, which refer to other files.
        options = {"format_whitelist": ",".join(CONTAINERS), "protocol_whitelist": "file"}
        with av.open(str(path.absolute()), options=options) as container:
            yield Video(path, container)
    except (av.FFmpegError, OSError) as error:
        raise undecodable(path, getattr(error, "strerror", None) or type(error).__name__) from error


def undecodable(path: Path, reason: str) -> UserError:
    """Return the error for a video that cannot be decoded."""
    return UserError(f"cannot decode the video {path} ({reason}): {REMEDY}")


class Timeline(NamedTuple):
    """Timestamps found by reading a file's packets without decoding, in the stream's time base.

    beginning: seek target for the first frame.
    timestamps: presentation times of the frames, increasing; None if the file does not give them.
    keyframes: (presentation time, seek target) of each frame that decodes without earlier ones.
    """

    beginning: int
    timestamps: list[int] | None
    keyframes: list[tuple[int, int]]


class Video:
    """An open video, created by `open_video`.

    Frames are numbered from 0 in presentation order, one for each timestamp of the file, whatever the frame rate. If a
    timestamp has no coded frame (encoders skip a frame that equals the previous one), the previous frame is repeated.
    AVI files have no presentation timestamps, and libav guesses them wrongly for B-frames, especially packed ones, as
    in part of UCF101. For these files the frames are those that the decoder returns, counted by decoding all of them.
    """

    def __init__(self, path: Path, container: "InputContainer") -> None:
        if not container.streams.video:
            raise undecodable(path, "it has no video stream")
        self.path = path
        self._container = container
        self._stream = container.streams.video[0]
        width, height = self._stream.codec_context.width, self._stream.codec_context.height
        if width * height > MAX_FRAME_PIXELS:
            raise undecodable(path, f"{width} x {height} is more than {MAX_FRAME_PIXELS:,} pixels")
        self._stream.codec_context.thread_count = 1  # loaders already run one process per core

    @cached_property
    def num_frames(self) -> int:
        """Number of frames in the file, at least 1."""
        timestamps = self._timeline.timestamps
        count = count_by_decoding(self.path, self.path.stat().st_mtime_ns) if timestamps is None else len(timestamps)
        if count == 0:
            raise undecodable(self.path, "it has no frames")
        return count

    def read(self, start: int, num_frames: int, stride: int = 1) -> list[Image.Image]:
        """Return the frames start, start + stride, ... as RGB images; all of them must be in the file."""
        stop = start + (num_frames - 1) * stride + 1
        assert 0 <= start < stop <= self.num_frames
        timestamps = self._timeline.timestamps
        if timestamps is None:
            self._seek(self._timeline.beginning)
            frames = list(islice(self._container.decode(self._stream), start, stop, stride))
        else:
            frames = self._frames_at(timestamps[start:stop:stride])
        if len(frames) < num_frames:
            raise undecodable(self.path, f"{num_frames - len(frames)} of {num_frames} frames are missing")
        return self._to_rgb(frames)

    @cached_property
    def _timeline(self) -> Timeline:
        beginning, timestamps, keyframes = None, [], []
        for packet in self._container.demux(self._stream):
            if packet.is_corrupt:
                raise undecodable(self.path, "it ends in the middle of a frame")
            if packet.size == 0 or packet.is_discard:
                continue
            if beginning is None:
                beginning = packet.dts
            timestamps.append(packet.pts)
            if packet.is_keyframe and packet.pts is not None:
                keyframes.append((packet.pts, packet.pts if packet.dts is None else min(packet.pts, packet.dts)))
        known = [time for time in timestamps if time is not None]
        guessed = "avi" in self._container.format.name and self._stream.codec_context.has_b_frames
        trusted = not guessed and len(set(known)) == len(timestamps)
        return Timeline(beginning or 0, sorted(known) if trusted else None, sorted(keyframes))

    def _frames_at(self, timestamps: list[int]) -> list["VideoFrame"]:
        """Return the frames presented at increasing timestamps, decoding from the last keyframe before them."""
        before = [seek_to for shown_at, seek_to in self._timeline.keyframes if shown_at <= timestamps[0]]
        for seek_to in [*before[-1:], self._timeline.beginning]:  # start over if the first seek lands too late
            self._seek(seek_to)
            frames = self._show(timestamps)
            if frames:
                break
        return frames

    def _show(self, timestamps: list[int]) -> list["VideoFrame"]:
        """Decode from the current position; returns the frames at the timestamps, none if the first one has passed."""
        shown: list[VideoFrame] = []
        latest = None
        for frame in self._container.decode(self._stream):
            if frame.pts is None:
                continue
            while len(shown) < len(timestamps) and timestamps[len(shown)] < frame.pts:
                if latest is None:
                    return []
                shown.append(latest)
            if len(shown) == len(timestamps):
                return shown
            latest = frame
        return shown if latest is None else shown + [latest] * (len(timestamps) - len(shown))

    def _seek(self, time: int) -> None:
        self._container.seek(time, stream=self._stream)

    def _to_rgb(self, frames: list["VideoFrame"]) -> list[Image.Image]:
        from av.video.reformatter import VideoReformatter

        reformatter = VideoReformatter()  # shared: creating one takes as long as converting a small frame
        return [Image.fromarray(reformatter.reformat(frame, format="rgb24").to_ndarray()) for frame in frames]


@cache
def count_by_decoding(path: Path, modified_ns: int) -> int:
    """Return how many frames a file decodes to; cached, since a loader needs it in each epoch."""
    with open_video(path) as video:
        return sum(1 for _ in video._container.decode(video._stream))
