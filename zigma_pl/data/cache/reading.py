"""The splits of a prepared set, in a local folder or at an address."""

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

from zigma_pl.core.errors import UserError
from zigma_pl.data.cache.arrays import ArraySplit
from zigma_pl.data.cache.manifest import Content, Manifest, check_fits, read_manifest
from zigma_pl.data.cache.remote import DEFAULT_FOLDER, copy_once, fetch_manifest, is_address
from zigma_pl.data.samples import Split


def open_manifest(location: str) -> Manifest:
    """Return the manifest of a prepared set in a folder or at an address.

    Raises:
        UserError: there is none, or it cannot be used.
    """
    return fetch_manifest(location) if is_address(location) else read_manifest(Path(location))


def local_folder(location: str, keep_fetched_in: str | None) -> Path:
    """Return the folder of a prepared set: the given one, or the local copy of what is at an address.

    Args:
        location: folder or address.
        keep_fetched_in: folder for copies; None for `DEFAULT_FOLDER`.

    Raises:
        UserError: it cannot be copied, see `copy_once`.
    """
    if not is_address(location):
        return Path(location)
    return copy_once(location, DEFAULT_FOLDER if keep_fetched_in is None else Path(keep_fetched_in))


def open_split(folder: Path, manifest: Manifest, split: Split, **draws: Any) -> ArraySplit:
    """Return a prepared split.

    Args:
        folder: of the prepared set.
        manifest: its manifest.
        split: which split.
        draws: seed, horizontal_flip and max_caption_tokens, see `PreparedSamples`.

    Raises:
        UserError: the split was not prepared, or files of it are missing.
    """
    if split not in manifest.splits:
        raise UserError(
            f"data.cache {folder}: holds {', '.join(manifest.splits)}, not '{split}'; run `prepare` into the same "
            f"folder with --splits {split}"
        )
    return ArraySplit(folder / split, manifest.splits[split], num_classes=manifest.content.num_classes, **draws)


class PreparedSet:
    """A prepared set, read in the place of the data set itself.

    Args:
        location: its folder or address.
        keep_fetched_in: folder for the copy of what is at an address; None for `DEFAULT_FOLDER`.
    """

    def __init__(self, location: str, keep_fetched_in: str | None = None) -> None:
        self.location = location
        self.keep_fetched_in = keep_fetched_in
        self._fits = False

    @cached_property
    def manifest(self) -> Manifest:
        """Its manifest, read once."""
        return open_manifest(self.location)

    def open(self, split: Split, content: Callable[[], Content], **draws: Any) -> ArraySplit:
        """Return a split.

        Args:
            split: which.
            content: gives what the set has to hold; it hashes the encoders' weights, and so is asked once.
            draws: as of `open_split`.

        Raises:
            UserError: the set is not of these options, or files of it are missing.
        """
        if not self._fits:
            check_fits(self.location, self.manifest, content())
            self._fits = True
        return open_split(local_folder(self.location, self.keep_fetched_in), self.manifest, split, **draws)
