"""Data sets that people have in a folder on disk, each with a stand-in that is drawn when they have not."""

from abc import abstractmethod
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from zigma_pl.core.ranges import check_whole_numbers
from zigma_pl.data.base import ImageDataModule
from zigma_pl.data.synthetic.folder import write_once


class DownloadedDataModule(ImageDataModule):
    """Base of data modules that read a downloaded set in its published layout.

    Args:
        root: folder of the data set.
        standin: draw a small set in the same layout beside `root`, and use that; `root` itself is neither read nor
            written.
        standin_num_items: pictures or clips in the stand-in.
        options: those of every data set.
    """

    standin_version: ClassVar[int]  # part of the stand-in's folder name: to be raised when the drawing changes
    smallest_standin: ClassVar[int] = 2

    def __init__(self, root: str, standin: bool = False, standin_num_items: int = 200, **options: Any) -> None:
        super().__init__(**options)
        check_whole_numbers("data", least=self.smallest_standin if standin else 1, standin_num_items=standin_num_items)
        self.root = root
        self.standin = standin
        self.standin_num_items = standin_num_items

    @abstractmethod
    def write_standin(self, folder: Path) -> None:
        """Draw `standin_num_items` pictures or clips of `image_size_px` into an empty folder, in the real layout."""

    def described(self) -> dict[str, Any]:
        """Return what decides the items of a split, as plain values."""
        described = super().described()
        if not self.standin:
            del described["standin_num_items"]
        return described

    @property
    def standin_name(self) -> str:
        """Name of the stand-in's own folder: every option that the drawing depends on is part of it."""
        return f"v{self.standin_version}-{self.standin_num_items}x{self.image_size_px}px"

    @cached_property
    def folder(self) -> Path:
        """Where the set lies: `root`, or the stand-in beside it, which is drawn if it is not there yet."""
        root = Path(self.root)
        if not self.standin:
            return root
        folder = root.absolute().with_name(f"{root.name}-standin") / self.standin_name
        write_once(folder, self.write_standin, f"a stand-in for {type(self).__name__}")
        return folder
