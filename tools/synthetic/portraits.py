"""Write the cartoon portraits of portraits.mjs in the layout of MM-CelebA-HQ, with ten captions each.

    node tools/synthetic/portraits.mjs --packages build/dicebear --out data/synthetic/portraits-drawn-64
    python tools/synthetic/portraits.py data/synthetic/portraits-drawn-64 data/synthetic/portraits

To write the data set on a machine without node, pack the portraits, without loss, and pass the archive there:

    python tools/synthetic/portraits.py data/synthetic/portraits-drawn-64 portraits-64.tar.xz
    python tools/synthetic/portraits.py portraits-64.tar.xz data/synthetic/portraits

Folder and archive give the same data set, byte for byte. The first four fifths of the ids are for training: with 30,000
portraits the ids below 24,000, as in the published set. There are two files more than in the published layout:
attributes.jsonl, the attributes of each portrait, and CREDITS.txt, the authors of the designs: Lorelei, Notionists and
Open Peeps are CC0 1.0; Personas by Draftbit, Micah Lanier's Avatar Illustration System and Lisa Wischofsky's Adventurer
are CC BY 4.0.
"""

import argparse
import io
import json
import random
import tarfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from PIL import Image
from portrait_captions import VALUES, write_captions
from tqdm import tqdm

from zigma_pl.core.files import whole_file
from zigma_pl.data.synthetic.folder import write_once
from zigma_pl.data.synthetic.mm_celeba_hq_layout import write_caption_files, write_lists

TABLE = "attributes.jsonl"
CREDITS = "CREDITS.txt"
ARCHIVE_SUFFIX = ".tar.xz"


class Portraits:
    """The pictures and tables written by portraits.mjs, in a folder or in an archive.

    Attributes:
        texts: contents of attributes.jsonl and CREDITS.txt.
        attributes: the attributes of each portrait, by id.
    """

    def __init__(self, source: Path) -> None:
        self.source = source
        if source.is_dir():
            self.texts = {name: (source / name).read_bytes() for name in (TABLE, CREDITS)}
        else:
            with tarfile.open(source, "r|xz") as archive:
                self.texts = dict(islice(members(archive), 2))
        rows = [json.loads(line) for line in self.texts[TABLE].splitlines()]
        self.attributes = {row.pop("id"): row for row in rows}

    def pictures(self) -> Iterator[tuple[int, Image.Image]]:
        """Yield ids and pictures, in the order of `attributes`."""
        if self.source.is_dir():
            for image_id in self.attributes:
                yield image_id, Image.open(self.source / f"{image_id}.png").convert("RGB")
            return
        with tarfile.open(self.source, "r|xz") as archive:
            for name, content in members(archive):
                if name not in self.texts:
                    yield int(name.removesuffix(".ppm")), Image.open(io.BytesIO(content))


def members(archive: tarfile.TarFile) -> Iterator[tuple[str, bytes]]:
    """Yield the name and content of each file in an archive."""
    for member in archive:
        file = archive.extractfile(member)
        assert file is not None
        yield member.name, file.read()


def main() -> None:
    """Write the data set, or the archive."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, help="folder written by portraits.mjs, or an archive of it")
    parser.add_argument("out", type=Path, help=f"folder of the data set to write, or NAME{ARCHIVE_SUFFIX} to pack")
    parser.add_argument("--seed", type=int, default=0, help="seed of the captions")
    arguments = parser.parse_args()
    needed = arguments.source / TABLE if arguments.source.is_dir() else arguments.source
    if not needed.is_file():
        parser.error(f"{needed} is missing: run portraits.mjs until it has finished, or correct the path")
    portraits = Portraits(arguments.source)
    unknown = {
        name: value for row in portraits.attributes.values() for name, value in row.items() if not known(name, value)
    }
    if unknown:
        parser.error(f"{needed} contains values that portrait_captions.py has no words for: {unknown}")
    if arguments.out.name.endswith(ARCHIVE_SUFFIX):
        pack(portraits, arguments.out)
        print(f"{arguments.out}: {arguments.out.stat().st_size / 2**20:.1f} MiB")
    else:
        what = f"{len(portraits.attributes)} captioned portraits"
        write_once(arguments.out, lambda folder: write(folder, portraits, arguments.seed), what)


def known(name: str, value: str | None) -> bool:
    """Whether captions have words for this value of an attribute, or it is None, which captions never mention."""
    return value is None or value in VALUES.get(name, ())


def pack(portraits: Portraits, path: Path) -> None:
    """Write tables and uncompressed pictures into one archive, so that similar pictures are compressed together."""
    with whole_file(path) as temporary, tarfile.open(temporary, "w:xz", preset=9) as archive:
        for name, content in portraits.texts.items():
            add(archive, name, content)
        for image_id, picture in tqdm(portraits.pictures(), "packing", len(portraits.attributes), unit="images"):
            content = io.BytesIO()
            picture.save(content, "PPM")
            add(archive, f"{image_id}.ppm", content.getvalue())


def add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    """Add a file to an archive without time and owner, so that equal files give equal archives."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def write(folder: Path, portraits: Portraits, seed: int) -> None:
    """Fill an empty folder."""
    (folder / "images").mkdir()
    for name, content in portraits.texts.items():
        (folder / name).write_bytes(content)
    for image_id, picture in tqdm(portraits.pictures(), "portraits", len(portraits.attributes), unit="images"):
        # Lower quality or colour subsampling is visible at the edges of flat colours.
        picture.save(folder / "images" / f"{image_id}.jpg", quality=95, subsampling=0)
        captions = write_captions(portraits.attributes[image_id], random.Random(f"{seed}/{image_id}"))
        write_caption_files(folder, {image_id: captions})
    image_ids = sorted(portraits.attributes)
    num_train = len(image_ids) * 4 // 5
    write_lists(folder, {"train": image_ids[:num_train], "test": image_ids[num_train:]})


if __name__ == "__main__":
    main()
