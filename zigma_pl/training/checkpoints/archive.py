"""Checkpoint files as zip archives: integrity, referenced classes, and the step. Does not import torch.

torch.save writes a zip archive of uncompressed entries: a pickle of the structure, and the bytes of each tensor. The
pickle is never executed here; only its operations are listed.
"""

import pickletools
import re
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from zigma_pl.core.archives import inflated

STEP_KEY = "global_step"
# Tensors and plain values. torch's own list also allows types that create large or sparse tensors from a few bytes.
PLAIN_GLOBALS = re.compile(r"collections OrderedDict|torch\._utils _rebuild_(tensor_v2|tensor_v3|parameter)|torch \w+")
OTHER_WAYS_TO_NAME = {"STACK_GLOBAL", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4"}
_NOT_AN_ARCHIVE_OF_OURS = (RuntimeError, EOFError, ValueError, OverflowError, struct.error, KeyError)


def damage_of(path: Path) -> str | None:
    """Return what is wrong with a checkpoint file, as the end of "<file> is truncated"; None if it is intact.

    The whole file is read and compared with the archive's checksums, which torch does not check; this takes 0.3 s per
    GB if the file is in the page cache. Entries that would need more memory than the file's size are not read.
    """
    try:
        with path.open("rb") as file:
            if file.read(2) != b"PK":
                return "is not a checkpoint of zigma_pl, or is truncated"
        with zipfile.ZipFile(path) as archive:  # the index is at the end, so a truncated file has none
            wrong = _refused(archive, path)
            altered = None if wrong else archive.testzip()
    except zipfile.BadZipFile:
        return "is truncated"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    except _NOT_AN_ARCHIVE_OF_OURS:  # an index that torch.save never writes
        return "is corrupted"
    return wrong or (None if altered is None else f"is corrupted (in {altered})")


def _refused(archive: zipfile.ZipFile, path: Path) -> str | None:
    too_large = inflated(archive, path.stat().st_size)
    if too_large is not None:
        return too_large
    names = archive.namelist()
    if len(set(names)) < len(names) or sum(name.endswith("data.pkl") for name in names) != 1:
        return "is not a checkpoint of zigma_pl"
    return None


def read_step(path: Path) -> int | None:
    """Return the number of optimiser steps of a checkpoint, None if the file does not contain it."""
    try:
        operations = _operations(path)
        for name, value in operations:
            if name == "BINUNICODE" and value == STEP_KEY:
                break
        following = next((value for name, value in operations if "PUT" not in name and name != "MEMOIZE"), None)
    except (OSError, zipfile.BadZipFile, *_NOT_AN_ARCHIVE_OF_OURS):
        return None
    return following if type(following) is int and following >= 0 else None


def foreign_object(path: Path) -> str | None:
    """Return what an intact checkpoint contains besides tensors and plain values, None if nothing.

    Raises:
        ValueError: the pickle is damaged.
    """
    for name, value in _operations(path):
        if name == "GLOBAL" and not PLAIN_GLOBALS.fullmatch(value):
            return f"{value.replace(' ', '.')}, which could run code"
        if name in OTHER_WAYS_TO_NAME:
            return "more than tensors and plain values"
    return None


def _operations(path: Path) -> Iterator[tuple[str, Any]]:
    with zipfile.ZipFile(path) as archive:
        if _refused(archive, path):
            raise ValueError(path)
        (name,) = (name for name in archive.namelist() if name.endswith("data.pkl"))
        content = archive.read(name)
    return ((operation.name, argument) for operation, argument, _ in pickletools.genops(content))
