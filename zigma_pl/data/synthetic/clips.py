"""A stand-in for UCF101: moving shapes in real .avi files, on disk in exactly the published layout.

It is for trying the pipeline without the data set, and for tests. A clip is a function of its class, group, number and
size alone, so two builds with one version of PyAV are equal byte for byte. As in the real set, the clips of a group
look alike, not all have the same length or frame rate, and some are coded with B-frames.
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
_QUANTISER = 3 * 118  # mpeg4's scale of 1 (best) to 31, in libav's units
_TEST_GROUPS = {1: range(1, 8), 2: range(8, 15), 3: range(15, 22)}  # of each fold, as published

BACKGROUNDS = ((236, 236, 230), (40, 44, 60), (170, 206, 190), (222, 184, 150), (96, 70, 96))
COLOURS = ((214, 60, 50), (40, 110, 200), (240, 190, 40), (60, 160, 80), (200, 60, 160))

_Point = tuple[float, float]


@dataclass(frozen=True)
class Scene:
    """What the clips of a group share. Lengths in units of the picture's height, `turns` in periods a frame."""

    background: tuple[int, int, int]
    colour: tuple[int, int, int]
    size: float
    turns: float


@dataclass(frozen=True)
class Pen:
    """Draws in units of the picture's height around its centre, x to the right and y downward."""

    draw: ImageDraw.ImageDraw
    width: int
    height: int

    def point(self, x: float, y: float) -> _Point:
        """Return the pixel of a point."""
        return self.width / 2 + x * self.height, self.height / 2 + y * self.height

    def disc(self, x: float, y: float, radius: float, scene: Scene) -> None:
        """Fill a disc."""
        self.draw.ellipse((*self.point(x - radius, y - radius), *self.point(x + radius, y + radius)), fill=scene.colour)

    def polygon(self, corners: Iterable[_Point], scene: Scene) -> None:
        """Fill a polygon."""
        self.draw.polygon([self.point(x, y) for x, y in corners], fill=scene.colour)


def bouncing_ball(pen: Pen, scene: Scene, phase: float) -> None:
    """Let a ball bounce on the ground; one bounce a period."""
    fall = 4 * (phase % 1 - 0.5) ** 2
    pen.disc(0, 0.4 - scene.size - 0.7 * (1 - fall) * (0.8 - scene.size), scene.size, scene)


def rotating_bar(pen: Pen, scene: Scene, phase: float) -> None:
    """Turn a bar about its centre, clockwise."""
    pen.polygon(_turned([(-0.4, -0.05), (0.4, -0.05), (0.4, 0.05), (-0.4, 0.05)], phase), scene)


def sliding_square(pen: Pen, scene: Scene, phase: float) -> None:
    """Slide a square from side to side."""
    x, half = 0.33 * math.sin(2 * math.pi * phase), scene.size
    pen.polygon([(x - half, -half), (x + half, -half), (x + half, half), (x - half, half)], scene)


def swinging_pendulum(pen: Pen, scene: Scene, phase: float) -> None:
    """Swing a disc on a rod that hangs from the top."""
    angle = 0.7 * math.sin(2 * math.pi * phase)
    x, y = 0.65 * math.sin(angle), 0.65 * math.cos(angle) - 0.45
    pen.draw.line([pen.point(0, -0.45), pen.point(x, y)], fill=scene.colour, width=max(1, pen.height // 60))
    pen.disc(x, y, 0.6 * scene.size, scene)


def pulsing_triangle(pen: Pen, scene: Scene, phase: float) -> None:
    """Let a triangle grow and shrink."""
    radius = 0.27 + 0.17 * math.sin(2 * math.pi * phase)
    pen.polygon(_turned([(0, -radius)], 0) + _turned([(0, -radius)], 1 / 3) + _turned([(0, -radius)], 2 / 3), scene)


MOTIONS: dict[str, Callable[[Pen, Scene, float], None]] = {
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
    """Draw a clip of `num_frames` frames, 4 : 3 and even-sided as mpeg4 wants it."""
    rng = random.Random(f"{class_name}/{group}")
    background, colour = rng.choice(BACKGROUNDS), rng.choice(COLOURS)
    scene = Scene(background, colour, size=rng.uniform(0.1, 0.16), turns=rng.uniform(0.03, 0.06))
    first_phase = random.Random(f"{class_name}/{group}/{clip}").random()
    height = height_px + height_px % 2
    size = (round(height * 2 / 3) * 2 * _SUPERSAMPLING, height * _SUPERSAMPLING)
    frames = []
    for number in range(num_frames):
        image = Image.new("RGB", size, scene.background)
        MOTIONS[class_name](Pen(ImageDraw.Draw(image), *size), scene, first_phase + number * scene.turns)
        frames.append(image.reduce(_SUPERSAMPLING))
    return frames


def write_video(path: Path, frames: list[Image.Image], frame_rate: Fraction, num_b_frames: int = 0) -> None:
    """Write frames of one size as mpeg4 in AVI, as in the real set, with up to `num_b_frames` B-frames in a row."""
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
        folder: where to.
        num_clips: clips in all, at least three for each of `MOTIONS`, so that no list of any fold is empty.
        height_px: height of the pictures, which are 4 : 3.
        shortest_frames: frames of the shortest clip.
    """
    listed = {name: list(_groups_and_clips(num_clips, place)) for place, name in enumerate(MOTIONS)}
    for class_name, places in listed.items():
        (folder / "UCF-101" / class_name).mkdir(parents=True)
        for group, clip in places:
            rng = random.Random(f"{class_name}/{group}/{clip}/length")
            num_frames = shortest_frames + rng.randint(0, _LARGEST_ADDED_FRAMES)
            frames = draw_frames(class_name, group, clip, num_frames, height_px)
            frame_rate = Fraction(30000, 1001) if group % 5 == 0 else Fraction(25)
            path = folder / "UCF-101" / class_name / _file_name(class_name, group, clip)
            write_video(path, frames, frame_rate, num_b_frames=group % 2)
    _write_lists(folder / "ucfTrainTestlist", listed)


def _groups_and_clips(num_clips: int, place: int) -> list[tuple[int, int]]:
    """Return (group, clip) of the videos of the class that comes `place`-th, both from 1, in rising order."""
    of_class = range(place, num_clips, len(MOTIONS))
    num_groups = min(_NUM_GROUPS, max(3, len(of_class) // 2))
    # In steps of 8, coprime to 25: so the first three groups are test groups of the three folds.
    places = [
        (1 + 8 * (number % num_groups) % _NUM_GROUPS, 1 + number // num_groups) for number in range(len(of_class))
    ]
    return sorted(places)


def _file_name(class_name: str, group: int, clip: int) -> str:
    return f"v_{class_name}_g{group:02}_c{clip:02}.avi"


def _write_lists(folder: Path, listed: dict[str, list[tuple[int, int]]]) -> None:
    folder.mkdir()
    lines = {"classInd.txt": [f"{number} {name}" for number, name in enumerate(listed, 1)]}
    for fold, test_groups in _TEST_GROUPS.items():
        train, test = lines.setdefault(f"trainlist{fold:02}.txt", []), lines.setdefault(f"testlist{fold:02}.txt", [])
        for number, (class_name, places) in enumerate(listed.items(), 1):
            for group, clip in places:
                name = f"{class_name}/{_file_name(class_name, group, clip)}"
                (test if group in test_groups else train).append(name if group in test_groups else f"{name} {number}")
    for name, content in lines.items():
        (folder / name).write_text("".join(f"{line}\r\n" for line in content), encoding="ascii", newline="")
