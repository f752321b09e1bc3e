"""Reading the splits of a prepared data set from a local folder or a URL."""

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
    """Return the manifest of a prepared data set in a folder or at a URL.

    Raises:
        UserError: the manifest is missing or invalid.
    """
    return fetch_manifest(location) if is_address(location) else read_manifest(Path(location))


def local_folder(location: str, keep_fetched_in: str | None) -> Path:
    """Return the folder of a prepared data set: `location` itself, or the local copy of a URL.

    Args:
        location: folder or URL.
        keep_fetched_in: folder for downloads; None for `DEFAULT_FOLDER`.

    Raises:
        UserError: the download failed, see `copy_once`.
    """
    if not is_address(location):
        return Path(location)
    return copy_once(location, DEFAULT_FOLDER if keep_fetched_in is None else Path(keep_fetched_in))


def open_split(folder: Path, manifest: Manifest, split: Split, **draws: Any) -> ArraySplit:
    """Return a prepared split.

    Args:
        folder: folder of the prepared data set.
        manifest: its manifest.
        split: name of the split.
        draws: seed, horizontal_flip and max_caption_tokens, see `PreparedSamples`.

    Raises:
        UserError: the split was not prepared, or some of its files are missing.
    """
    if split not in manifest.splits:
        raise UserError(
            f"data.cache {folder} has {', '.join(manifest.splits)} but not '{split}': run `prepare` with the same "
            f"--out and --splits {split}"
        )
    return ArraySplit(folder / split, manifest.splits[split], num_classes=manifest.content.num_classes, **draws)


class PreparedSet:
    """A prepared data set, read instead of the data set itself.

    Args:
        location: its folder or URL.
        keep_fetched_in: folder for downloads; None for `DEFAULT_FOLDER`.
    """

    def __init__(self, location: str, keep_fetched_in: str | None = None) -> None:
        self.location = location
        self.keep_fetched_in = keep_fetched_in
        self._fits = False

    @cached_property
    def manifest(self) -> Manifest:
        """The manifest, read once."""
        return open_manifest(self.location)

    def open(self, split: Split, content: Callable[[], Content], **draws: Any) -> ArraySplit:
        """Return a split.

        Args:
            split: name of the split.
            content: returns the required content. It hashes the encoders' weights, so it is called only once.
            draws: see `open_split`.

        Raises:
            UserError: the data set was prepared with other options, or some of its files are missing.
        """
        if not self._fits:
            check_fits(self.location, self.manifest, content())
            self._fits = True
        return open_split(local_folder(self.location, self.keep_fetched_in), self.manifest, split, **draws)
