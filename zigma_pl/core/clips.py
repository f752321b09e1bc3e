"""Videos from tensors: GIF and MP4 files, grids of clips, and contact sheets of their frames.

Axes: F frames, H W pixels, C channels.
"""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image, ImageSequence
from torch import Tensor

from zigma_pl.core.files import whole_file
from zigma_pl.core.grid import tile, to_pil
from zigma_pl.core.ranges import check_whole_numbers
from zigma_pl.core.torch_private import add_summary

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

Clip = list[Image.Image]

# GIF stores durations in hundredths of a second, and viewers slow down frames shorter than two of them.
MAX_FRAMES_PER_SECOND = 50
STILL_SIDE_PX = 128  # maximum side of a frame in `stills`, which shows every frame of every clip
_CODEC = "libx264"  # H.264, which every browser plays


def check_frames_per_second(owner: str, frames_per_second: int) -> None:
    """Raise UserError, naming the option's owner, if the frame rate is out of range."""
    check_whole_numbers(owner, most=MAX_FRAMES_PER_SECOND, frames_per_second=frames_per_second)


def to_clip(frames: Tensor) -> Clip:
    """Convert (F, H, W, C) uint8 with one or three channels to a clip."""
    return [to_pil(frame) for frame in frames]


def tile_clips(clips: list[Clip], num_columns: int, labels: Sequence[str] | None = None) -> Clip:
    """Tile clips of equal size and length, each with its label below it, into one clip."""
    return [tile(frames, num_columns, labels) for frames in zip(*clips, strict=True)]


def stills(clips: list[Clip], labels: Sequence[str] | None = None) -> Image.Image:
    """Show all frames of clips of equal size and length in one image, one clip per row, its label below the first."""
    width, height = clips[0][0].size
    shrinking = max(1.0, max(width, height) / STILL_SIDE_PX)
    size = (round(width / shrinking), round(height / shrinking))
    frames = [frame if frame.size == size else frame.resize(size) for clip in clips for frame in clip]
    length = len(clips[0])
    below = None if labels is None else [text for label in labels for text in (label, *[""] * (length - 1))]
    return tile(frames, length, below)


def can_write_mp4() -> bool:
    """Return whether PyAV is installed and has an H.264 encoder."""
    if find_spec("av") is None:
        return False
    import av

    return _CODEC in av.codecs_available


def clip_suffix() -> str:
    """Return the suffix for files written by `save_clip`: .mp4, or .gif without PyAV."""
    return ".mp4" if can_write_mp4() else ".gif"


def save_clip(clip: Clip, path: Path, frames_per_second: int) -> None:
    """Write a clip atomically, as .mp4 or .gif according to the path's suffix."""
    (save_mp4 if path.suffix == ".mp4" else save_gif)(clip, path, frames_per_second)


def save_gif(clip: Clip, path: Path, frames_per_second: int) -> None:
    """Write an endlessly looping GIF, with 256 colours per frame."""
    first, *others = clip
    with whole_file(path) as temporary:
        first.save(
            temporary, format="GIF", save_all=True, append_images=others, duration=1000 / frames_per_second, loop=0
        )


def save_mp4(clip: Clip, path: Path, frames_per_second: int) -> None:
    """Write a high-quality H.264 MP4 file; requires `can_write_mp4`.

    The format needs even sides (chroma is subsampled by two), so an odd side is padded with one black line.
    """
    import av

    width, height = (side + side % 2 for side in clip[0].size)
    with whole_file(path) as temporary, av.open(temporary, "w", format="mp4") as container:
        stream = container.add_stream(_CODEC, rate=frames_per_second, options={"crf": "12"})
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for frame in clip:
            even = frame.convert("RGB").crop((0, 0, width, height))
            container.mux(stream.encode(av.VideoFrame.from_image(even)))
        container.mux(stream.encode())


def read_clip(path: Path, frames_per_second: int) -> Clip:
    """Read a clip that `save_clip` wrote at this frame rate; both formats are lossy, so colours differ slightly."""
    if path.suffix == ".mp4":
        import av

        with av.open(path) as container:
            return [frame.to_image() for frame in container.decode(video=0)]
    clip: Clip = []
    with Image.open(path, formats=["GIF"]) as image:
        for frame in ImageSequence.Iterator(image):
            # Identical consecutive frames are stored once, with a longer duration.
            num_repeats = max(1, round(frame.info["duration"] * frames_per_second / 1000))
            clip += [frame.convert("RGB")] * num_repeats
    return clip


def log_gif(writer: "SummaryWriter", tag: str, path: Path, step: int) -> None:
    """Log a GIF file as a TensorBoard image, which plays there; `add_video` would need another package."""
    from tensorboard.compat.proto.summary_pb2 import Summary

    with Image.open(path, formats=["GIF"]) as image:
        width, height = image.size
    shown = Summary.Image(width=width, height=height, colorspace=3, encoded_image_string=path.read_bytes())
    add_summary(writer, Summary(value=[Summary.Value(tag=tag, image=shown)]), step)
