"""Files in the layout of MM-CelebA-HQ besides the pictures `images/<id>.jpg`: captions and the ids of each split."""

import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path


def write_caption_files(folder: Path, captions: Mapping[int, Sequence[str]]) -> None:
    """Write `celeba-caption/<id>.txt`, one caption per line."""
    (folder / "celeba-caption").mkdir(exist_ok=True)
    for image_id, of_image in captions.items():
        text = "".join(f"{caption}\n" for caption in of_image)
        (folder / "celeba-caption" / f"{image_id}.txt").write_text(text, encoding="utf-8", newline="\n")


def write_lists(folder: Path, lists: Mapping[str, Sequence[int]]) -> None:
    """Write `<split>/filenames.pickle`, a list of ids as strings, as published."""
    for split, image_ids in lists.items():
        (folder / split).mkdir()
        names = [str(image_id) for image_id in image_ids]
        (folder / split / "filenames.pickle").write_bytes(pickle.dumps(names, protocol=2))
