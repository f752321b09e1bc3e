"""Synthetic MM-CelebA-HQ and FacesHQ: captioned cartoon faces in the published layouts.

Image and captions are functions of the image id, so files written twice are equal byte for byte.
"""

import random
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw

from zigma_pl.data.synthetic.mm_celeba_hq_layout import write_caption_files, write_lists

_SUPERSAMPLING = 4
_Box = tuple[float, float, float, float]

HAIR_COLOURS = {
    "black": (30, 26, 28),
    "brown": (112, 70, 40),
    "blond": (226, 190, 96),
    "red": (178, 72, 36),
    "grey": (150, 150, 154),
}
HAT_COLOURS = {"blue": (48, 84, 170), "green": (52, 126, 72), "purple": (118, 62, 148), "orange": (222, 128, 40)}
BACKGROUNDS = {"white": (238, 238, 236), "pink": (238, 186, 200), "yellow": (242, 224, 140), "teal": (120, 186, 186)}
SKIN_TONES = ((250, 218, 190), (232, 188, 150), (198, 146, 104), (142, 96, 66), (98, 66, 46))


@dataclass(frozen=True)
class Face:
    """Attributes of a face. `offset` and `width` are in units of the image's side; captions leave out `skin_tone`."""

    hair: str
    long_hair: bool
    smiling: bool
    glasses: bool
    hat: str | None
    background: str
    skin_tone: tuple[int, int, int]
    offset: tuple[float, float]
    width: float


def draw_attributes(image_id: int) -> Face:
    """Return the face of an id."""
    rng = random.Random(image_id)
    return Face(
        hair=rng.choice(list(HAIR_COLOURS)),
        long_hair=rng.random() < 0.5,
        smiling=rng.random() < 0.5,
        glasses=rng.random() < 0.35,
        hat=rng.choice(list(HAT_COLOURS)) if rng.random() < 0.3 else None,
        background=rng.choice(list(BACKGROUNDS)),
        skin_tone=rng.choice(SKIN_TONES),
        offset=(rng.uniform(-0.04, 0.04), rng.uniform(-0.03, 0.03)),
        width=rng.uniform(0.21, 0.26),
    )


def write_captions(face: Face) -> list[str]:
    """Return ten differently worded captions of a face."""
    length = "long" if face.long_hair else "short"
    smile = "smiling" if face.smiling else "not smiling"
    mood = "happy" if face.smiling else "serious"
    glasses = "glasses" if face.glasses else "no glasses"
    hat = f"a {face.hat} hat" if face.hat else "no hat"
    place = f"a {face.background} background"
    return [
        f"This person has {length} {face.hair} hair and is {smile}.",
        f"A {mood} person with {face.hair} hair, wearing {glasses} and {hat}.",
        f"The person wears {glasses} and has {length} {face.hair} hair.",
        f"Someone {smile} in front of {place}.",
        f"A face with {length} {face.hair} hair on {place}.",
        f"This person wears {hat} and {glasses} and looks {mood}.",
        f"The {mood} person in the picture has {face.hair} hair and {hat}.",
        f"With {length} hair that is {face.hair}, the person is {smile}.",
        f"A portrait of a {mood} person, {face.hair} hair, {glasses}, {place}.",
        f"She or he is {smile}, wears {hat} and has {length} hair.",
    ]


def draw_face(face: Face, size_px: int) -> Image.Image:
    """Draw a face of `size_px` x `size_px`, RGB."""
    side = size_px * _SUPERSAMPLING
    image = Image.new("RGB", (side, side), BACKGROUNDS[face.background])
    draw = ImageDraw.Draw(image)
    centre_x, centre_y, wide, high = 0.5 + face.offset[0], 0.52 + face.offset[1], face.width, face.width * 1.3

    def box(left: float, top: float, right: float, bottom: float) -> _Box:
        """Scale a box given in face widths and heights around the face's centre."""
        return (
            (centre_x + left * wide) * side,
            (centre_y + top * high) * side,
            (centre_x + right * wide) * side,
            (centre_y + bottom * high) * side,
        )

    hair, line = HAIR_COLOURS[face.hair], max(1, side // 48)
    draw.ellipse(box(-1.25, -1.25, 1.25, 0.75), fill=hair)
    if face.long_hair:
        draw.rectangle(box(-1.25, -0.25, 1.25, 1.15), fill=hair)
    draw.rectangle(box(-0.35, 0.7, 0.35, 1.4), fill=face.skin_tone)
    draw.ellipse(box(-1.6, 1.2, 1.6, 3.2), fill=(70, 80, 110))
    draw.ellipse(box(-1, -0.95, 1, 1), fill=face.skin_tone)
    draw.chord(box(-1.02, -1.05, 1.02, 0.35), 200, 340, fill=hair)
    for eye in (-0.42, 0.42):
        draw.ellipse(box(eye - 0.2, -0.2, eye + 0.2, 0.06), fill=(250, 250, 250))
        draw.ellipse(box(eye - 0.09, -0.16, eye + 0.09, 0.03), fill=(40, 50, 70))
        if face.glasses:
            draw.ellipse(box(eye - 0.34, -0.34, eye + 0.34, 0.2), outline=(20, 20, 20), width=line)
    if face.glasses:
        draw.line(box(-0.1, -0.08, 0.1, -0.08), fill=(20, 20, 20), width=line)
    if face.smiling:
        draw.chord(box(-0.45, 0.2, 0.45, 0.75), 10, 170, fill=(190, 50, 60))
    else:
        draw.line(box(-0.35, 0.55, 0.35, 0.55), fill=(150, 60, 60), width=line)
    if face.hat:
        draw.rectangle(box(-0.95, -1.6, 0.95, -0.7), fill=HAT_COLOURS[face.hat])
        draw.rectangle(box(-1.45, -0.78, 1.45, -0.58), fill=HAT_COLOURS[face.hat])
    return image.reduce(_SUPERSAMPLING)


def write_mm_celeba_hq(folder: Path, num_images: int, size_px: int) -> None:
    """Write images, captions and split lists into an empty folder; the first four fifths of the ids are for training.

    Args:
        folder: output folder.
        num_images: number of images, at least 2.
        size_px: side of the images.
    """
    (folder / "images").mkdir()
    captions = {}
    for image_id in range(num_images):
        face = draw_attributes(image_id)
        draw_face(face, size_px).save(folder / "images" / f"{image_id}.jpg", quality=95)
        captions[image_id] = write_captions(face)
    write_caption_files(folder, captions)
    num_train = min(num_images - 1, max(1, num_images * 4 // 5))
    write_lists(folder, {"train": range(num_train), "test": range(num_train, num_images)})


def write_faceshq(folder: Path, num_images: int, size_px: int) -> None:
    """Write CelebA-HQ and FFHQ in their unpacked layouts, and the lists of taming-transformers, into an empty folder.

    The ids are spread over the real range, so that a split by ids has images for training and for testing.

    Args:
        folder: output folder.
        num_images: total number of images, at least 4; 30 % of them are CelebA-HQ's.
        size_px: side of the images.
    """
    num_celeba_hq = max(2, num_images * 3 // 10)
    celeba_hq = _spread(num_celeba_hq, 30_000)
    ffhq = _spread(num_images - num_celeba_hq, 70_000)
    for number in celeba_hq:
        path = folder / "CelebAMask-HQ" / "CelebA-HQ-img" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        draw_face(draw_attributes(number), size_px).save(path, quality=95)
    for number in ffhq:
        path = folder / "ffhq" / "images1024x1024" / f"{number // 1000 * 1000:05d}" / f"{number:05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        draw_face(draw_attributes(30_000 + number), size_px).save(path)
    _write_lists(folder, "celebahq", [f"imgHQ{number:05d}.npy" for number in celeba_hq])
    _write_lists(folder, "ffhq", [f"{number:05d}.png" for number in ffhq])


def _spread(count: int, num_ids: int) -> list[int]:
    """Return `count` ids, at least 2, evenly spaced from the first to the last."""
    return [i * (num_ids - 1) // (count - 1) for i in range(count)]


def _write_lists(folder: Path, name: str, file_names: list[str]) -> None:
    """Write every fifth name to the validation list and the others to the training list."""
    lists = {"validation": file_names[::5], "train": [file for i, file in enumerate(file_names) if i % 5]}
    for part, listed in lists.items():
        (folder / f"{name}{part}.txt").write_text("".join(f"{file}\n" for file in listed), newline="\n")
