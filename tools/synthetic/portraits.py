"""Put the cartoon portraits that portraits.mjs draws into the layout of MM-CelebA-HQ, with ten captions each.

    node tools/synthetic/portraits.mjs --packages build/dicebear --out data/synthetic/portraits-drawn-64
    python tools/synthetic/portraits.py data/synthetic/portraits-drawn-64 data/synthetic/portraits

To take them to a machine without node, pack them, without loss, and give the archive instead of the folder there:

    python tools/synthetic/portraits.py data/synthetic/portraits-drawn-64 portraits-64.tar.xz
    python tools/synthetic/portraits.py portraits-64.tar.xz data/synthetic/portraits

Folder and archive give the same data set byte for byte. The first four fifths of the ids are for training: of 30,000
those below 24,000, as published. Beside the published layout there are attributes.jsonl, what each portrait shows, and
CREDITS.txt, whose the designs are: Lorelei, Notionists and Open Peeps are CC0 1.0; Personas by Draftbit, Micah Lanier's
Avatar Illustration System and Lisa Wischofsky's Adventurer are CC BY 4.0.
"""

import argparse
import io
import json
import random
import tarfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from mm_celeba_hq_layout import write_caption_files, write_lists
from PIL import Image
from portrait_captions import VALUES, write_captions
from tqdm import tqdm

from zigma_pl.core.files import whole_file
from zigma_pl.data.synthetic.folder import write_once

TABLE = "attributes.jsonl"
CREDITS = "CREDITS.txt"
ARCHIVE_SUFFIX = ".tar.xz"


class Drawn:
    """The pictures and tables that portraits.mjs has drawn, in its folder or in an archive.

    Attributes:
        texts: content of attributes.jsonl and of CREDITS.txt.
        attributes: what each portrait shows, by id.
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
    """Yield name and content of each file of an archive."""
    for member in archive:
        file = archive.extractfile(member)
        assert file is not None
        yield member.name, file.read()


def main() -> None:
    """Write the data set, or the archive."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, help="folder that portraits.mjs has drawn, or an archive of it")
    parser.add_argument("out", type=Path, help=f"folder of the data set to make, or NAME{ARCHIVE_SUFFIX} to pack")
    parser.add_argument("--seed", type=int, default=0, help="of the captions")
    arguments = parser.parse_args()
    needed = arguments.source / TABLE if arguments.source.is_dir() else arguments.source
    if not needed.is_file():
        parser.error(f"{needed} is missing: let portraits.mjs finish, or correct the name")
    drawn = Drawn(arguments.source)
    unknown = {
        name: value for row in drawn.attributes.values() for name, value in row.items() if not known(name, value)
    }
    if unknown:
        parser.error(f"{needed} has values without words in portrait_captions.py: {unknown}")
    if arguments.out.name.endswith(ARCHIVE_SUFFIX):
        pack(drawn, arguments.out)
        print(f"{arguments.out}: {arguments.out.stat().st_size / 2**20:.1f} MiB")
    else:
        what = f"{len(drawn.attributes)} captioned portraits"
        write_once(arguments.out, lambda folder: write(folder, drawn, arguments.seed), what)


def known(name: str, value: str | None) -> bool:
    """Whether there are words for the value of an attribute; None, which is not told, needs none."""
    return value is None or value in VALUES.get(name, ())


def pack(drawn: Drawn, path: Path) -> None:
    """Write tables and uncompressed pictures into one archive, whose compression then sees what pictures share."""
    with whole_file(path) as temporary, tarfile.open(temporary, "w:xz", preset=9) as archive:
        for name, content in drawn.texts.items():
            add(archive, name, content)
        for image_id, picture in tqdm(drawn.pictures(), "packing", len(drawn.attributes), unit="images"):
            content = io.BytesIO()
            picture.save(content, "PPM")
            add(archive, f"{image_id}.ppm", content.getvalue())


def add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    """Add a file to an archive; without time and owner, so that equal files make equal archives."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def write(folder: Path, drawn: Drawn, seed: int) -> None:
    """Fill an empty folder."""
    (folder / "images").mkdir()
    for name, content in drawn.texts.items():
        (folder / name).write_bytes(content)
    for image_id, picture in tqdm(drawn.pictures(), "portraits", len(drawn.attributes), unit="images"):
        # Less, or colour at half the resolution, shows at the edges of flat colours.
        picture.save(folder / "images" / f"{image_id}.jpg", quality=95, subsampling=0)
        captions = write_captions(drawn.attributes[image_id], random.Random(f"{seed}/{image_id}"))
        write_caption_files(folder, {image_id: captions})
    image_ids = sorted(drawn.attributes)
    num_train = len(image_ids) * 4 // 5
    write_lists(folder, {"train": image_ids[:num_train], "test": image_ids[num_train:]})


if __name__ == "__main__":
    main()
