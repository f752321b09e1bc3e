"""Published lists of training and test images.

Those of MM-CelebA-HQ are pickled lists of file names, read without executing anything. In some published copies the two
files are swapped (issue 6 of the data set's repository). This is detected from the ids and corrected, with a warning.
Those of taming-transformers are text, one file name per line.
"""

import io
import pickle
import pickletools
import re
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from zigma_pl.core.errors import UserError
from zigma_pl.core.files import read_regular

NUM_IDS = 30_000
MAX_NAMES = 10**6
# Operations that pickle, in any protocol, writes for a list of strings.
_PLAIN_OPERATIONS = {
    *("PROTO", "FRAME", "MARK", "STOP", "EMPTY_LIST", "LIST", "APPEND", "APPENDS", "MEMOIZE"),
    *("PUT", "BINPUT", "LONG_BINPUT", "GET", "BINGET", "LONG_BINGET"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
}
NUM_TRAIN_IDS = 24_000  # published: ids 0 to 23,999 are for training, the rest for testing


class _PlainUnpickler(pickle.Unpickler):
    """Accepts only lists and strings: references to classes or functions are rejected."""

    def find_class(self, module_name: str, global_name: str) -> Any:
        raise pickle.UnpicklingError(f"it refers to {module_name}.{global_name}")


def _check_plain(content: bytes) -> None:
    """Reject operations that a list of strings does not need, without executing any; some could exhaust the memory."""
    for operation, argument, _ in pickletools.genops(content):
        is_number_of_memo = "PUT" in operation.name
        if operation.name not in _PLAIN_OPERATIONS or (is_number_of_memo and not 0 <= int(argument or 0) < MAX_NAMES):
            raise pickle.UnpicklingError(f"it is not just a list of strings ({operation.name})")


def read_filename_list(path: Path) -> list[int]:
    """Return the image ids in a pickled list of names, "12" or "12.jpg".

    Raises:
        UserError: the file is not a pickle, or is not a list of such strings.
    """
    try:
        content = read_regular(path)
        _check_plain(content)
        names = _PlainUnpickler(io.BytesIO(content)).load()
    except Exception as error:  # unpickling a damaged file raises many kinds of errors
        raise UserError(
            f"{path} is not a pickled list of file names ({' '.join(str(error).split())[:200]}) and was not executed: "
            "download it again"
        ) from error
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{path}: expected a pickled list of file names such as '12': download it again")
    stems = [name.removesuffix(".jpg") for name in names]
    wrong = [stem for stem in stems if not (stem.isdecimal() and len(stem) < 10)]
    if wrong:
        raise UserError(f"{path}: {wrong[0][:60]!r} is not an image id such as '12': download it again")
    return [int(stem) for stem in stems]


def read_splits(root: Path, present: set[int]) -> dict[str, list[int]]:
    """Return the ids of "train" and "test".

    Args:
        root: folder of the data set.
        present: ids that have an image; they are split by the published ranges if there are no lists.

    Raises:
        UserError: only one list exists, one cannot be read, or they share ids.
    """
    paths = {split: root / split / "filenames.pickle" for split in ("train", "test")}
    missing = [path for path in paths.values() if not path.is_file()]
    if len(missing) == 1:
        raise UserError(f"{missing[0]} does not exist, but the other list does: restore it, or remove both")
    if missing:
        return _split_by_id(root, present)
    splits = {split: read_filename_list(path) for split, path in paths.items()}
    shared = set(splits["train"]) & set(splits["test"])
    if shared:
        raise UserError(
            f"{paths['train']} and {paths['test']} share {len(shared)} ids, such as {min(shared)}: download them again"
        )
    return _unswap(root, splits)


def _split_by_id(root: Path, present: set[int]) -> dict[str, list[int]]:
    rank_zero_warn(
        f"MM-CelebA-HQ in {root}: no train/filenames.pickle and test/filenames.pickle; "
        f"using the published split, ids below {NUM_TRAIN_IDS} for training and the rest for testing"
    )
    train = [image_id for image_id in present if image_id < NUM_TRAIN_IDS]
    return {"train": train, "test": sorted(present.difference(train))}


def _unswap(root: Path, splits: dict[str, list[int]]) -> dict[str, list[int]]:
    """Swap the lists if the training list is the smaller one and has only the higher ids."""
    train, test = splits["train"], splits["test"]
    if test and train and len(train) < len(test) and min(train) > max(test):
        rank_zero_warn(
            f"MM-CelebA-HQ in {root}: train/filenames.pickle and test/filenames.pickle are swapped "
            f"({len(train)} training ids from {min(train)}, {len(test)} test ids up to {max(test)}); swapping them back"
        )
        train, test = test, train
    if len(train) + len(test) == NUM_IDS and (len(train) != NUM_TRAIN_IDS or max(train) >= NUM_TRAIN_IDS):
        rank_zero_warn(
            f"MM-CelebA-HQ in {root}: the lists have {len(train)} and {len(test)} ids and are not the published split "
            f"(ids below {NUM_TRAIN_IDS} for training); scores are not comparable with published ones"
        )
    return {"train": train, "test": test}


def number_in_name(name: str) -> int | None:
    """Return the id in a file name such as "12.jpg", "00000/00012.png" or "imgHQ00012.npy"; None if there is none."""
    match = re.fullmatch(r"(?:.*/)?(?:imgHQ)?(\d{1,9})\.\w+", name)
    return int(match[1]) if match else None


def read_number_list(path: Path) -> list[int]:
    """Return the ids in a text list of file names, one per line; empty lines are skipped.

    Raises:
        UserError: the file cannot be read, is empty, lists an image twice, or has a line without an id.
    """
    try:
        names = [line.strip() for line in read_regular(path).decode().splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the list {path} ({error}): copy it there again") from error
    numbers = [number for number in map(number_in_name, names) if number is not None]
    if len(numbers) < len(names) or len(set(numbers)) < len(numbers) or not numbers:
        raise UserError(f"{path}: expected distinct file names such as '00012.png', one per line: copy it there again")
    return numbers
