"""Write captioned emoji in the layout of MS-COCO.

    npm pack emoji-datasource-google@16.0.0 && mkdir google && tar xzf emoji-datasource-google-16.0.0.tgz -C google
    npm pack @lobehub/fluent-emoji-3d@1.1.0 && mkdir fluent && tar xzf lobehub-fluent-emoji-3d-1.1.0.tgz -C fluent
    python tools/synthetic/emoji_coco.py google/package data/synthetic/emoji-coco --fluent fluent/package

The pictures are 3,786 flat emoji of 64 px by Google (Noto Emoji, Apache-2.0; the table of names is MIT) and, with
--fluent, 3,391 three-dimensional ones of 256 px by Microsoft (Fluent Emoji, MIT), on a white background. Each has five
captions made from names, category and skin tone. One emoji in five, by a hash of its code points, is in val with all
its variants and in both designs, so that no picture of train looks like one of val.
"""

import argparse
import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

from emoji_table import Emoji, key_of, read_emoji
from tqdm import tqdm

from zigma_pl.data.images import decode_image, resize_and_crop
from zigma_pl.data.synthetic.folder import write_once

NUM_PARTS = 5  # one of them is val
CREDITS = """The flat pictures are Noto Emoji by Google (https://github.com/googlefonts/noto-emoji), Apache License 2.0,
from the npm package emoji-datasource-google, whose table of names is under the MIT License, (c) 2013 Cal Henderson.
The three-dimensional ones are Fluent Emoji by Microsoft (https://github.com/microsoft/fluentui-emoji), MIT License,
from the npm package @lobehub/fluent-emoji-3d. All are put on white and cut to size.
"""


class Picture(NamedTuple):
    """A picture file, the emoji that it shows, and the word for its design."""

    path: Path
    emoji: Emoji
    design: str


def main() -> None:
    """Write pictures and captions."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("package", type=Path, help="folder of the unpacked emoji-datasource-google")
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--fluent", type=Path, help="folder of the unpacked @lobehub/fluent-emoji-3d")
    parser.add_argument("--size-px", type=int, default=64, help="side of the pictures")
    parser.add_argument("--year", type=int, default=2014, choices=(2014, 2017), help="use the file names of this year")
    arguments = parser.parse_args()
    table = read_emoji(arguments.package)
    pictures = find_pictures(arguments.package / "img/google/64", ".png", "flat", table)
    if arguments.fluent is not None:
        pictures += find_pictures(arguments.fluent / "assets", ".webp", "glossy", table)
    if not pictures:
        parser.error(f"{arguments.package} contains no pictures: give the folder of the unpacked package")
    what = f"{len(pictures)} captioned emoji"
    write_once(arguments.out, lambda folder: write(folder, pictures, arguments.size_px, arguments.year), what)


def find_pictures(folder: Path, suffix: str, design: str, table: dict[str, Emoji]) -> list[Picture]:
    """Return the pictures in a folder whose emoji are in the table, sorted by file name."""
    paths = [path for path in sorted(folder.glob(f"*{suffix}")) if key_of(path.stem) in table]
    return [Picture(path, table[key_of(path.stem)], design) for path in paths]


def part_of(emoji: Emoji) -> str:
    """Return "train" or "val", the same for all variants of an emoji."""
    return "train" if hashlib.sha256(emoji.base.encode()).digest()[0] % NUM_PARTS else "val"


def write_captions(emoji: Emoji, design: str) -> list[str]:
    """Return five captions with different details."""
    tones = " and ".join(dict.fromkeys(emoji.skin_tones))
    skin = f" with {tones} skin" if tones else ""
    name, other = emoji.names[0], emoji.names[-1]
    kind = emoji.subcategory.replace("-", " ")
    return [
        f"A {design} emoji: {name}{skin}.",
        f"An emoji of the category {emoji.category.lower()}: {other}{skin}.",
        f"A {design} picture of the kind {kind}, {name}{skin}.",
        f"{other}{skin}, {design}, on a white background.".capitalize(),
        f"{', '.join(emoji.names)}{skin}.".capitalize(),
    ]


def write(folder: Path, pictures: list[Picture], size_px: int, year: int) -> None:
    """Fill an empty folder."""
    (folder / "CREDITS.txt").write_text(CREDITS)
    (folder / "annotations").mkdir()
    images: dict[str, list[dict[str, Any]]] = {"train": [], "val": []}
    annotations: dict[str, list[dict[str, Any]]] = {"train": [], "val": []}
    for part in images:
        (folder / f"{part}{year}").mkdir()
    for image_id, picture in enumerate(tqdm(pictures, "pictures", unit="images"), 1):
        part = part_of(picture.emoji)
        name = f"COCO_{part}2014_{image_id:012d}.jpg" if year == 2014 else f"{image_id:012d}.jpg"
        image = resize_and_crop(decode_image(picture.path), size_px)
        image.save(folder / f"{part}{year}" / name, quality=95, subsampling=0)
        images[part].append({"id": image_id, "file_name": name, "width": size_px, "height": size_px})
        for index, caption in enumerate(write_captions(picture.emoji, picture.design)):
            annotations[part].append({"image_id": image_id, "id": 5 * image_id + index, "caption": caption})
    for part in images:
        content = {"info": {"year": year}, "images": images[part], "licenses": [], "annotations": annotations[part]}
        (folder / "annotations" / f"captions_{part}{year}.json").write_text(json.dumps(content), encoding="utf-8")


if __name__ == "__main__":
    main()
