"""Base class of data sets that users download, with a small synthetic replacement for each."""

from abc import abstractmethod
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from zigma_pl.core.ranges import check_whole_numbers
from zigma_pl.data.base import ImageDataModule
from zigma_pl.data.cache.manifest import RECORDED_NAMES
from zigma_pl.data.synthetic.folder import write_once


class DownloadedDataModule(ImageDataModule):
    """Base class of data modules that read a downloaded data set in its published layout.

    Args:
        root: folder of the data set.
        synthetic: use a small synthetic data set in the same layout instead. It is created next to `root`, which is
            neither read nor written.
        num_synthetic_items: images or clips in the synthetic data set.
        options: options of `ImageDataModule`.
    """

    synthetic_version: ClassVar[int]  # part of the synthetic folder's name: increase it when the images change
    smallest_synthetic: ClassVar[int] = 2

    def __init__(self, root: str, synthetic: bool = False, num_synthetic_items: int = 200, **options: Any) -> None:
        super().__init__(**options)
        least = self.smallest_synthetic if synthetic else 1
        check_whole_numbers("data", least=least, num_synthetic_items=num_synthetic_items)
        self.root = root
        self.synthetic = synthetic
        self.num_synthetic_items = num_synthetic_items

    @abstractmethod
    def write_synthetic(self, folder: Path) -> None:
        """Write `num_synthetic_items` images or clips of `image_size_px` into an empty folder, in the real layout."""

    def described(self) -> dict[str, Any]:
        """Return, as plain values, everything that determines the items of a split and their content."""
        described = super().described()
        if not self.synthetic:
            del described["num_synthetic_items"]
        return {RECORDED_NAMES.get(name, name): value for name, value in described.items()}

    @property
    def synthetic_name(self) -> str:
        """Folder name of the synthetic data; it includes every option that the data depend on."""
        return f"v{self.synthetic_version}-{self.num_synthetic_items}x{self.image_size_px}px"

    @cached_property
    def folder(self) -> Path:
        """Folder of the data set: `root`, or the synthetic data next to it, created if missing."""
        root = Path(self.root)
        if not self.synthetic:
            return root
        folder = root.absolute().with_name(f"{root.name}-synthetic") / self.synthetic_name
        write_once(folder, self.write_synthetic, f"synthetic data for {type(self).__name__}")
        return folder
