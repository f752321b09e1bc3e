"""Synthetic UCF101: moving shapes in .avi files, in the published layout.

A clip is a function of its class, group, number and size, so files written with the same version of PyAV are equal byte
for byte. As in the real data set, the clips of a group look alike, lengths and frame rates differ, and some clips are
coded with B-frames.
"""

import math
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from PIL import Image, ImageDraw

from zigma_pl.data.video_files import import_av

_SUPERSAMPLING = 2
_NUM_GROUPS = 25
_LARGEST_ADDED_FRAMES = 16
_QUANTISER = 3 * 118  # 3 on mpeg4's scale from 1 (best) to 31, in libav's units
_TEST_GROUPS = {1: range(1, 8), 2: range(8, 15), 3: range(15, 22)}  # published test groups of each fold

BACKGROUNDS = ((236, 236, 230), (40, 44, 60), (170, 206, 190), (222, 184, 150), (96, 70, 96))
COLOURS = ((214, 60, 50), (40, 110, 200), (240, 190, 40), (60, 160, 80), (200, 60, 160))

_Point = tuple[float, float]


@dataclass(frozen=True)
class ClipStyle:
    """Appearance of the clips of a group. `size` is in units of the frame height, `turns` in periods per frame."""

    background: tuple[int, int, int]
    colour: tuple[int, int, int]
    size: float
    turns: float


@dataclass(frozen=True)
class Pen:
    """Draws in units of the frame height around the frame's centre, x to the right and y downward."""

    draw: ImageDraw.ImageDraw
    width: int
    height: int

    def point(self, x: float, y: float) -> _Point:
        """Return the pixel coordinates of a point."""
        return self.width / 2 + x * self.height, self.height / 2 + y * self.height

    def disc(self, x: float, y: float, radius: float, style: ClipStyle) -> None:
        """Fill a disc."""
        self.draw.ellipse((*self.point(x - radius, y - radius), *self.point(x + radius, y + radius)), fill=style.colour)

    def polygon(self, corners: Iterable[_Point], style: ClipStyle) -> None:
        """Fill a polygon."""
        self.draw.polygon([self.point(x, y) for x, y in corners], fill=style.colour)


def bouncing_ball(pen: Pen, style: ClipStyle, phase: float) -> None:
    """Draw a ball that bounces on the ground, once per period."""
    fall = 4 * (phase % 1 - 0.5) ** 2
    pen.disc(0, 0.4 - style.size - 0.7 * (1 - fall) * (0.8 - style.size), style.size, style)


def rotating_bar(pen: Pen, style: ClipStyle, phase: float) -> None:
    """Draw a bar that rotates clockwise about its centre."""
    pen.polygon(_turned([(-0.4, -0.05), (0.4, -0.05), (0.4, 0.05), (-0.4, 0.05)], phase), style)


def sliding_square(pen: Pen, style: ClipStyle, phase: float) -> None:
    """Draw a square that slides from side to side."""
    x, half = 0.33 * math.sin(2 * math.pi * phase), style.size
    pen.polygon([(x - half, -half), (x + half, -half), (x + half, half), (x - half, half)], style)


def swinging_pendulum(pen: Pen, style: ClipStyle, phase: float) -> None:
    """Draw a disc that swings on a rod hanging from the top."""
    angle = 0.7 * math.sin(2 * math.pi * phase)
    x, y = 0.65 * math.sin(angle), 0.65 * math.cos(angle) - 0.45
    pen.draw.line([pen.point(0, -0.45), pen.point(x, y)], fill=style.colour, width=max(1, pen.height // 60))
    pen.disc(x, y, 0.6 * style.size, style)


def pulsing_triangle(pen: Pen, style: ClipStyle, phase: float) -> None:
    """Draw a triangle that grows and shrinks."""
    radius = 0.27 + 0.17 * math.sin(2 * math.pi * phase)
    pen.polygon(_turned([(0, -radius)], 0) + _turned([(0, -radius)], 1 / 3) + _turned([(0, -radius)], 2 / 3), style)


MOTIONS: dict[str, Callable[[Pen, ClipStyle, float], None]] = {
    "BouncingBall": bouncing_ball,
    "PulsingTriangle": pulsing_triangle,
    "RotatingBar": rotating_bar,
    "SlidingSquare": sliding_square,
    "SwingingPendulum": swinging_pendulum,
}


def _turned(corners: list[_Point], turns: float) -> list[_Point]:
    cosine, sine = math.cos(2 * math.pi * turns), math.sin(2 * math.pi * turns)
    return [(cosine * x - sine * y, sine * x + cosine * y) for x, y in corners]


def draw_frames(class_name: str, group: int, clip: int, num_frames: int, height_px: int) -> list[Image.Image]:
    """Draw a clip of `num_frames` frames, 4:3 and with even sides, as mpeg4 requires."""
    rng = random.Random(f"{class_name}/{group}")
    background, colour = rng.choice(BACKGROUNDS), rng.choice(COLOURS)
    style = ClipStyle(background, colour, size=rng.uniform(0.1, 0.16), turns=rng.uniform(0.03, 0.06))
    first_phase = random.Random(f"{class_name}/{group}/{clip}").random()
    height = height_px + height_px % 2
    size = (round(height * 2 / 3) * 2 * _SUPERSAMPLING, height * _SUPERSAMPLING)
    frames = []
    for index in range(num_frames):
        image = Image.new("RGB", size, style.background)
        MOTIONS[class_name](Pen(ImageDraw.Draw(image), *size), style, first_phase + index * style.turns)
        frames.append(image.reduce(_SUPERSAMPLING))
    return frames


def write_video(path: Path, frames: list[Image.Image], frame_rate: Fraction, num_b_frames: int = 0) -> None:
    """Write frames of equal size as mpeg4 in AVI, like the real data, with up to `num_b_frames` B-frames in a row."""
    av = import_av()
    options = {"flags": "+bitexact+qscale", "global_quality": str(_QUANTISER), "threads": "1"}
    with av.open(str(path), "w", format="avi", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("mpeg4", rate=frame_rate, options=options)
        stream.width, stream.height = frames[0].size
        stream.pix_fmt = "yuv420p"
        stream.codec_context.codec_tag = "XVID"
        stream.codec_context.max_b_frames = num_b_frames
        for frame in [*(av.VideoFrame.from_image(image) for image in frames), None]:
            container.mux(stream.encode(frame))


def write_ucf101(folder: Path, num_clips: int, height_px: int, shortest_frames: int) -> None:
    """Write videos, lists and class names into an empty folder.

    Args:
        folder: output folder.
        num_clips: total number of clips, at least three for each of `MOTIONS`, so that no list of any fold is empty.
        height_px: height of the frames, which are 4:3.
        shortest_frames: number of frames of the shortest clip.
    """
    listed = {name: list(_groups_and_clips(num_clips, class_id)) for class_id, name in enumerate(MOTIONS)}
    for class_name, clips in listed.items():
        (folder / "UCF-101" / class_name).mkdir(parents=True)
        for group, clip in clips:
            rng = random.Random(f"{class_name}/{group}/{clip}/length")
            num_frames = shortest_frames + rng.randint(0, _LARGEST_ADDED_FRAMES)
            frames = draw_frames(class_name, group, clip, num_frames, height_px)
            frame_rate = Fraction(30000, 1001) if group % 5 == 0 else Fraction(25)
            path = folder / "UCF-101" / class_name / _file_name(class_name, group, clip)
            write_video(path, frames, frame_rate, num_b_frames=group % 2)
    _write_lists(folder / "ucfTrainTestlist", listed)


def _groups_and_clips(num_clips: int, class_id: int) -> list[tuple[int, int]]:
    """Return the (group, clip) numbers of the videos of a class, both from 1, sorted."""
    of_class = range(class_id, num_clips, len(MOTIONS))
    num_groups = min(_NUM_GROUPS, max(3, len(of_class) // 2))
    # Steps of 8, coprime to 25, so that the first three groups are test groups of the three folds.
    return sorted((1 + 8 * (i % num_groups) % _NUM_GROUPS, 1 + i // num_groups) for i in range(len(of_class)))


def _file_name(class_name: str, group: int, clip: int) -> str:
    return f"v_{class_name}_g{group:02}_c{clip:02}.avi"


def _write_lists(folder: Path, listed: dict[str, list[tuple[int, int]]]) -> None:
    folder.mkdir()
    lines = {"classInd.txt": [f"{number} {name}" for number, name in enumerate(listed, 1)]}
    for fold, test_groups in _TEST_GROUPS.items():
        train, test = lines.setdefault(f"trainlist{fold:02}.txt", []), lines.setdefault(f"testlist{fold:02}.txt", [])
        for number, (class_name, clips) in enumerate(listed.items(), 1):
            for group, clip in clips:
                name = f"{class_name}/{_file_name(class_name, group, clip)}"
                (test if group in test_groups else train).append(name if group in test_groups else f"{name} {number}")
    for name, content in lines.items():
        (folder / name).write_text("".join(f"{line}\r\n" for line in content), encoding="ascii", newline="")
