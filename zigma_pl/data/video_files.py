"""Exact frames out of video files, decoded by PyAV (the optional extra `video`)."""

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
REMEDY = "replace it by a good copy, or take it out of the data set"


def import_av() -> ModuleType:
    """Return PyAV.

    Raises:
        UserError: it is not installed.
    """
    try:
        import av
    except ImportError as error:
        raise UserError('videos are decoded by PyAV, which is missing: pip install "zigma_pl[video]"') from error
    return av


@contextmanager
def open_video(path: Path) -> Iterator["Video"]:
    """Open a video file for reading.

    Raises:
        UserError: also out of the block that reads: the file is missing, not a regular file, in none of `CONTAINERS`,
            or does not decode.
    """
    av = import_av()
    try:
        open_regular(path).close()
        # An absolute path is no address; a playlist, which names further files and addresses, is not opened.
        options = {"format_whitelist": ",".join(CONTAINERS), "protocol_whitelist": "file"}
        with av.open(str(path.absolute()), options=options) as container:
            yield Video(path, container)
    except (av.FFmpegError, OSError) as error:
        raise undecodable(path, getattr(error, "strerror", None) or type(error).__name__) from error


def undecodable(path: Path, reason: str) -> UserError:
    """Return the error that names a video and what is wrong with it."""
    return UserError(f"cannot decode the video {path} ({reason}): {REMEDY}")


class Timeline(NamedTuple):
    """What a pass over the packets of a file, without decoding, tells; times are in the stream's units.

    beginning: where to seek for the first frame.
    timestamps: rising times at which the frames are shown; None where the file does not say.
    keyframes: (time shown, where to seek for it) of each frame that decodes without the ones before it.
    """

    beginning: int
    timestamps: list[int] | None
    keyframes: list[tuple[int, int]]


class Video:
    """An open video; get it from `open_video`.

    Frames are numbered from 0 in the order in which they are shown, whatever the frame rate: one for each timestamp of
    the file. Where nothing is coded for a timestamp (encoders leave out a frame that is equal to the one before it),
    the frame before it stays. AVI has no such timestamps: with B-frames, and above all with packed ones, as in part of
    UCF101, libav's guess is wrong. There the frames are what the decoder gives, counted by decoding all of them.
    """

    def __init__(self, path: Path, container: "InputContainer") -> None:
        if not container.streams.video:
            raise undecodable(path, "it holds no pictures")
        self.path = path
        self._container = container
        self._stream = container.streams.video[0]
        width, height = self._stream.codec_context.width, self._stream.codec_context.height
        if width * height > MAX_FRAME_PIXELS:
            raise undecodable(path, f"{width} x {height} are more than {MAX_FRAME_PIXELS:,} pixels")
        self._stream.codec_context.thread_count = 1  # loaders run one process per core already

    @cached_property
    def num_frames(self) -> int:
        """Frames in the file, at least 1."""
        timestamps = self._timeline.timestamps
        count = count_by_decoding(self.path, self.path.stat().st_mtime_ns) if timestamps is None else len(timestamps)
        if count == 0:
            raise undecodable(self.path, "it holds no frame")
        return count

    def read(self, start: int, num_frames: int, stride: int = 1) -> list[Image.Image]:
        """Return the frames start, start + stride, ... as RGB pictures; the last of them has to be in the file."""
        stop = start + (num_frames - 1) * stride + 1
        assert 0 <= start < stop <= self.num_frames
        timestamps = self._timeline.timestamps
        if timestamps is None:
            self._seek(self._timeline.beginning)
            frames = list(islice(self._container.decode(self._stream), start, stop, stride))
        else:
            frames = self._frames_at(timestamps[start:stop:stride])
        if len(frames) < num_frames:
            raise undecodable(self.path, f"{num_frames - len(frames)} of the {num_frames} frames asked for are missing")
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
        """Return the frames shown at rising timestamps, decoding from the last keyframe before them."""
        before = [seek_to for shown_at, seek_to in self._timeline.keyframes if shown_at <= timestamps[0]]
        for seek_to in [*before[-1:], self._timeline.beginning]:  # the second, if the first lands too late
            self._seek(seek_to)
            frames = self._show(timestamps)
            if frames:
                break
        return frames

    def _show(self, timestamps: list[int]) -> list["VideoFrame"]:
        """Decode from here on; returns what is shown at the timestamps, nothing if the first one is past already."""
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

        reformatter = VideoReformatter()  # one for all: making it costs as much as converting a small frame
        return [Image.fromarray(reformatter.reformat(frame, format="rgb24").to_ndarray()) for frame in frames]


@cache
def count_by_decoding(path: Path, modified_ns: int) -> int:
    """Return how many frames a file decodes to; kept for the process, since a loader asks again in each epoch."""
    with open_video(path) as video:
        return sum(1 for _ in video._container.decode(video._stream))
