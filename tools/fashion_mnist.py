"""Write Fashion-MNIST, photographs of clothes, in the layout of MM-CelebA-HQ, with six captions each.

    apt-get download dataset-fashion-mnist && dpkg -x dataset-fashion-mnist_*.deb build/fashion
    python tools/fashion_mnist.py build/fashion/usr/share/datasets/fashion-mnist data/fashion-mnist

The same four files are in github.com/zalandoresearch/fashion-mnist. The first 24,000 training images and the first
6,000 test images are used, as many as in MM-CelebA-HQ. They are grey, with a black border of 2 pixels around the
published 28 x 28. Captions are made from the names of the ten classes. To copy this subset to another machine, pack it
without loss into an archive of 11 MiB, and pass the archive there:

    python tools/fashion_mnist.py build/fashion/usr/share/datasets/fashion-mnist fashion-mnist.tar.xz
    python tools/fashion_mnist.py fashion-mnist.tar.xz data/fashion-mnist
"""

import argparse
import gzip
import io
import lzma
import tarfile
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from tqdm import tqdm

from zigma_pl.core.files import whole_file
from zigma_pl.data.synthetic.folder import write_once
from zigma_pl.data.synthetic.mm_celeba_hq_layout import write_caption_files, write_lists

LARGEST = {"train": 24_000, "test": 6_000}  # images used of each split
FILES = {
    split: (f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx1-ubyte")
    for split, prefix in (("train", "train"), ("test", "t10k"))
}
ARCHIVE_SUFFIX = ".tar.xz"
BORDER_PX = 2
THINGS = (  # by class, as in the published list
    *("a T-shirt or top", "a pair of trousers", "a pullover", "a dress", "a coat"),
    *("a sandal", "a shirt", "a sneaker", "a bag", "an ankle boot"),
)
CREDITS = """Fashion-MNIST (https://github.com/zalandoresearch/fashion-mnist), (c) 2017 Zalando SE, MIT License.
Here with a black border and captions made from the names of the classes.
"""

Splits = dict[str, tuple[np.ndarray, np.ndarray]]


def main() -> None:
    """Write the data set, or the archive."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, help="folder of the four published .gz files, or an archive of the subset")
    parser.add_argument("out", type=Path, help=f"folder of the data set to write, or NAME{ARCHIVE_SUFFIX} to pack")
    arguments = parser.parse_args()
    names = [name for of_split in FILES.values() for name in of_split]
    needed = [arguments.source / f"{name}.gz" for name in names] if arguments.source.is_dir() else [arguments.source]
    for path in needed:
        if not path.is_file():
            parser.error(f"{path} is missing: give the folder of the published files, or an archive of this tool")
    try:
        splits = read(arguments.source)
    except (OSError, EOFError, LookupError, ValueError, tarfile.TarError, lzma.LZMAError, zlib.error) as error:
        parser.error(f"{arguments.source} cannot be read ({error}): copy or download it again")
    if arguments.out.name.endswith(ARCHIVE_SUFFIX):
        pack(splits, arguments.out)
        print(f"{arguments.out}: {arguments.out.stat().st_size / 2**20:.1f} MiB")
    else:
        write_once(arguments.out, lambda folder: write(folder, splits), "Fashion-MNIST with captions")


def read(source: Path) -> Splits:
    """Return images (N, 28, 28) and classes (N,) of each split, uint8, from the published files or an archive."""
    if source.is_dir():
        contents = {path.stem: gzip.decompress(path.read_bytes()) for path in source.glob("*-ubyte.gz")}
    else:
        contents = {}
        with tarfile.open(source, "r:xz") as archive:
            for member in archive:
                file = archive.extractfile(member)
                assert file is not None
                contents[member.name] = file.read()
    return {
        split: (parse(contents[images])[: LARGEST[split]], parse(contents[labels])[: LARGEST[split]])
        for split, (images, labels) in FILES.items()
    }


def parse(content: bytes) -> np.ndarray:
    """Return the bytes of an idx file: two zeros, the type 8, the number of axes, their lengths as big-endian int32."""
    start = 4 + 4 * content[3]
    return np.frombuffer(content, np.uint8, offset=start).reshape(np.frombuffer(content[4:start], ">i4"))


def pack(splits: Splits, path: Path) -> None:
    """Write the subset as uncompressed idx files into an archive; equal images give equal archives."""
    with whole_file(path) as temporary, tarfile.open(temporary, "w:xz", preset=9) as archive:
        for split, names in FILES.items():
            for name, array in zip(names, splits[split], strict=True):
                content = bytes((0, 0, 8, array.ndim)) + np.array(array.shape, ">i4").tobytes() + array.tobytes()
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))


def write_captions(thing: str) -> list[str]:
    """Return six captions of a thing with its article, such as "an ankle boot"."""
    name = thing.split(" ", 1)[1]
    first, noun = thing[0].upper() + thing[1:], name[0].upper() + name[1:]
    return [
        f"A photo of {thing}.",
        f"The picture shows {thing}.",
        f"{first} in front of a black background.",
        f"A grey photo of {thing}, taken for a shop.",
        f"{noun}.",
        f"{noun}, on black.",
    ]


def write(folder: Path, splits: Splits) -> None:
    """Fill an empty folder."""
    (folder / "images").mkdir()
    (folder / "CREDITS.txt").write_text(CREDITS, encoding="utf-8")
    lists: dict[str, range] = {}
    first_id = 0
    for split, (images, classes) in splits.items():
        lists[split] = range(first_id, first_id + len(images))
        for image_id, pixels in zip(lists[split], tqdm(images, split, unit="images"), strict=True):
            picture = ImageOps.expand(Image.fromarray(pixels), BORDER_PX)
            picture.save(folder / "images" / f"{image_id}.jpg", quality=100)  # errors of at most 2 of 255
        captions = [write_captions(THINGS[number]) for number in classes.tolist()]
        write_caption_files(folder, dict(zip(lists[split], captions, strict=True)))
        first_id += len(images)
    write_lists(folder, lists)


if __name__ == "__main__":
    main()
