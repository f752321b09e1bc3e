"""Synthetic MS-COCO: captioned scenes of simple shapes, in the published layout.

Image and captions are functions of the image id, so files written twice are equal byte for byte. As in the real data
set, images are not square, some are grey, one caption has a line break and one is empty.
"""

import json
import random
from dataclasses import dataclass
from math import cos, pi, sin
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

_SUPERSAMPLING = 4

SHAPES = ("circle", "square", "triangle", "star")
COLOURS = {
    "red": (206, 44, 40),
    "blue": (44, 84, 188),
    "green": (50, 140, 66),
    "yellow": (236, 198, 52),
    "purple": (124, 60, 152),
    "orange": (230, 130, 36),
}
BACKGROUNDS = {
    "white": (242, 242, 240),
    "grey": (168, 170, 172),
    "pink": (240, 196, 208),
    "light blue": (176, 212, 236),
}
NUMBER_WORDS = ("no", "one", "two", "three")
# Offset of a group's centre from the image centre, in units of the shorter side; groups stay inside a centre crop.
ROWS = {"at the top": -0.3, "in the middle": 0.0, "at the bottom": 0.3}
COLUMNS = {"on the left": -0.3, "in the middle": 0.0, "on the right": 0.3}
ASPECT_RATIOS = ((4, 3), (3, 4), (3, 2), (2, 3), (5, 4), (16, 9))


@dataclass(frozen=True)
class Group:
    """One to three equal shapes in a row or column. `radius` is in units of the image's shorter side."""

    shape: str
    colour: str
    count: int
    place: str
    radius: float


@dataclass(frozen=True)
class Scene:
    """Attributes of a scene. Its groups are rows or columns; captions of grey images mention no colours."""

    groups: tuple[Group, ...]
    in_columns: bool
    background: str
    aspect_ratio: tuple[int, int]
    grey: bool


def draw_scene_attributes(image_id: int) -> Scene:
    """Return the scene of an image id; one in eight is grey."""
    rng = random.Random(image_id)
    in_columns = rng.random() < 0.5
    places = rng.sample(list(COLUMNS if in_columns else ROWS), rng.choice((1, 2, 2, 3)))
    groups = tuple(
        Group(rng.choice(SHAPES), rng.choice(list(COLOURS)), rng.randint(1, 3), place, rng.uniform(0.08, 0.13))
        for place in places
    )
    return Scene(
        groups, in_columns, rng.choice(list(BACKGROUNDS)), rng.choice(ASPECT_RATIOS), grey=image_id // 16 % 8 == 3
    )


def write_scene_captions(scene: Scene) -> list[str]:
    """Return five differently worded captions of a scene."""
    with_places = _listing([f"{_name(group, scene.grey)} {group.place}" for group in scene.groups])
    without = _listing([_name(group, scene.grey) for group in scene.groups])
    background = "background" if scene.grey else f"{scene.background} background"
    total = sum(group.count for group in scene.groups)
    shapes = "shape" if total == 1 else "shapes"
    kind = "A black and white picture" if scene.grey else "A picture"
    return [
        f"{kind} of {with_places}.",
        f"{without} on a {background}.".capitalize(),
        f"The picture shows {with_places}.",
        f"{kind} that shows {without} and nothing else.",
        f"{total} {shapes} on a {background}: {without}.",
    ]


def draw_scene(scene: Scene, size_px: int) -> Image.Image:
    """Draw a scene whose shorter side has `size_px`, mode "RGB", or "L" if it is grey."""
    wide, high = scene.aspect_ratio
    width, height = size_px * wide // min(wide, high), size_px * high // min(wide, high)
    image = Image.new("RGB", (width * _SUPERSAMPLING, height * _SUPERSAMPLING), BACKGROUNDS[scene.background])
    draw = ImageDraw.Draw(image)
    unit = size_px * _SUPERSAMPLING
    for group in scene.groups:
        offset = (COLUMNS if scene.in_columns else ROWS)[group.place]
        for i in range(group.count):
            along = (i - (group.count - 1) / 2) * 2.3 * group.radius
            right, down = (offset, along) if scene.in_columns else (along, offset)
            x, y = image.width / 2 + right * unit, image.height / 2 + down * unit
            _draw_shape(draw, group.shape, x, y, group.radius * unit, COLOURS[group.colour])
    image = image.reduce(_SUPERSAMPLING)
    return image.convert("L") if scene.grey else image


def write_coco(folder: Path, num_images: int, size_px: int, year: int) -> None:
    """Write images and caption files of one release into an empty folder; four fifths are for training.

    Args:
        folder: output folder.
        num_images: total number of images in both splits, at least 2.
        size_px: shorter side of the images.
        year: release, which determines the file names.
    """
    num_val = max(1, num_images // 5)
    parts = {"train": [9 + 16 * i for i in range(num_images - num_val)], "val": [42 + 16 * i for i in range(num_val)]}
    (folder / "annotations").mkdir()
    for part, image_ids in parts.items():
        (folder / f"{part}{year}").mkdir()
        prefix = f"COCO_{part}{year}_" if year < 2017 else ""
        images = []
        for image_id in image_ids:
            picture = draw_scene(draw_scene_attributes(image_id), size_px)
            name = f"{prefix}{image_id:012d}.jpg"
            picture.save(folder / f"{part}{year}" / name, quality=95)
            images.append({"id": image_id, "file_name": name, "width": picture.width, "height": picture.height})
        content = {
            "info": {"description": "synthetic COCO", "year": year},
            "images": images[::-1],  # not sorted by id, as in the real files
            "licenses": [],
            "annotations": _annotations(image_ids),
        }
        (folder / "annotations" / f"captions_{part}{year}.json").write_text(json.dumps(content), encoding="utf-8")


def _annotations(image_ids: list[int]) -> list[dict[str, Any]]:
    """Return all captions; the third of the first image has a line break, the fifth of the last image is empty."""
    captions = {image_id: write_scene_captions(draw_scene_attributes(image_id)) for image_id in image_ids}
    captions[image_ids[0]][2] = captions[image_ids[0]][2].replace(" shows ", " shows\n") + "\n"
    captions[image_ids[-1]][4] = ""
    pairs = [(image_id, texts[i]) for i in range(5) for image_id, texts in captions.items()]
    return [{"image_id": image_id, "id": i, "caption": caption} for i, (image_id, caption) in enumerate(pairs, 1)]


def _name(group: Group, grey: bool) -> str:
    plural = "" if group.count == 1 else "s"
    colour = "" if grey else f"{group.colour} "
    return f"{NUMBER_WORDS[group.count]} {colour}{group.shape}{plural}"


def _listing(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _draw_shape(
    draw: ImageDraw.ImageDraw, shape: str, x: float, y: float, radius: float, colour: tuple[int, int, int]
) -> None:
    if shape == "circle":
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
    elif shape == "square":
        draw.rectangle((x - 0.85 * radius, y - 0.85 * radius, x + 0.85 * radius, y + 0.85 * radius), fill=colour)
    else:
        # Corners of a triangle, or of a star, whose inner corners have a smaller radius.
        radii = [radius] * 3 if shape == "triangle" else [radius, 0.42 * radius] * 5
        angles = [2 * pi * i / len(radii) - pi / 2 for i in range(len(radii))]
        draw.polygon([(x + r * cos(a), y + r * sin(a)) for r, a in zip(radii, angles, strict=True)], fill=colour)
