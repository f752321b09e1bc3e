"""Rewrite the data set of emoji_coco.py in the layout of MM-CelebA-HQ, for the experiments of tables 1 and 1x.

    python tools/synthetic/emoji_faces.py data/synthetic/emoji-coco data/synthetic/emoji-faces

Pictures, captions (five each) and the split do not change; val is called test.
"""

import argparse
import json
import shutil
from collections import defaultdict
from pathlib import Path

from tqdm import tqdm

from zigma_pl.data.synthetic.folder import write_once
from zigma_pl.data.synthetic.mm_celeba_hq_layout import write_caption_files, write_lists

PARTS = {"train": "train", "val": "test"}


def main() -> None:
    """Write the data set."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, help="folder written by emoji_coco.py with --year 2014")
    parser.add_argument("out", type=Path, help="folder to write")
    arguments = parser.parse_args()
    tables = {part: arguments.source / "annotations" / f"captions_{part}2014.json" for part in PARTS}
    for table in tables.values():
        if not table.is_file():
            parser.error(f"{table} is missing: give a folder written by emoji_coco.py with --year 2014")
    write_once(arguments.out, lambda folder: write(folder, arguments.source, tables), "captioned emoji as faces")


def write(folder: Path, source: Path, tables: dict[str, Path]) -> None:
    """Fill an empty folder."""
    (folder / "images").mkdir()
    shutil.copyfile(source / "CREDITS.txt", folder / "CREDITS.txt")
    lists = {}
    for part, table in tables.items():
        content = json.loads(table.read_text(encoding="utf-8"))
        captions = defaultdict(list)
        for row in content["annotations"]:
            captions[row["image_id"]].append(row["caption"])
        for row in tqdm(content["images"], part, unit="images"):
            shutil.copyfile(source / f"{part}2014" / row["file_name"], folder / "images" / f"{row['id']}.jpg")
        write_caption_files(folder, captions)
        lists[PARTS[part]] = sorted(captions)
    write_lists(folder, lists)


if __name__ == "__main__":
    main()
