"""UCF101 in its published layout: 13,320 videos of 101 human actions.

Source: crcv.ucf.edu/data/UCF101.php, UCF101.rar and UCF101TrainTestSplits-RecognitionTask.zip (Soomro et al.,
arXiv:1212.0402). The videos come from YouTube, mostly 320 x 240 at 25 or 29.97 frames per second; the shortest have
about 29 frames. The videos of a class form 25 groups, each cut from one recording, and the published splits are by
group.
"""

import os
import re
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

from zigma_pl.core.errors import UserError
from zigma_pl.core.files import read_regular
from zigma_pl.core.ranges import check_whole_numbers
from zigma_pl.data.base import Split
from zigma_pl.data.sources.videos import VideoDataModule, VideoItem
from zigma_pl.data.synthetic.clips import MOTIONS, write_ucf101

NUM_CLASSES = 101
SHORTEST_FRAMES = 29
VIDEO_FOLDERS = ("UCF-101", "videos", ".")
LIST_FOLDERS = ("ucfTrainTestlist", ".")

REMEDY = (
    "expected <root>/UCF-101/<Class>/v_<Class>_g01_c01.avi, <root>/ucfTrainTestlist/classInd.txt, trainlist01.txt and "
    "testlist01.txt; set data.root to the data set's folder, or `synthetic: true` in the data section "
    "(--data.synthetic true) to use a small synthetic data set"
)

# The folder gives the class: the file names of one class spell it differently
# (HandstandPushups/v_HandStandPushups_g01_c01).
_LIST_LINE = re.compile(
    r"(?P<class_name>\w+)/(?P<file_name>v_\w+_g(?P<group>\d{1,9})_c\d+\.avi)(?:\s+(?P<number>\d{1,9}))?"
)
_CLASS_LINE = re.compile(r"(?P<number>\d{1,9})\s+(?P<class_name>\w+)")


class ListedVideo(NamedTuple):
    """A line of a list. `number` is the class number from 1, only in training lists.

    Videos of the same class and group come from one recording.
    """

    class_name: str
    file_name: str
    group: int
    number: int | None


class VideosOnDisk:
    """The data set in `root`: class ids from 0, and the videos listed for one of the three folds.

    Raises:
        UserError: files are missing, or the lists, the class names and the folders contradict each other.
    """

    def __init__(self, root: Path, fold: int) -> None:
        if not root.is_dir():
            raise UserError(f"UCF101: folder '{root}' does not exist; {REMEDY}")
        self.root = root
        self.class_ids = read_class_names(find(root, LIST_FOLDERS, "classInd.txt"))
        self.video_folder = find(root, VIDEO_FOLDERS, next(iter(self.class_ids))).parent
        self._check_folders()
        paths = {split: find(root, LIST_FOLDERS, f"{split}list{fold:02}.txt") for split in ("train", "test")}
        self.listed = {split: read_list(path, self.class_ids) for split, path in paths.items()}
        shared = groups_of(self.listed["train"]) & groups_of(self.listed["test"])
        if shared:
            class_name, group = min(shared)
            raise UserError(
                f"{paths['train']} and {paths['test']} share {len(shared)} groups, such as {class_name} g{group:02}, "
                "whose videos come from one recording: download the lists again"
            )

    def items(self, videos: list[ListedVideo], split: str) -> list[VideoItem]:
        """Return listed videos with path and class, after checking that each file exists."""
        folders = {video.class_name for video in videos}
        present = {name: set(os.listdir(self.video_folder / name)) for name in folders}
        missing = [video for video in videos if video.file_name not in present[video.class_name]]
        if missing:
            raise UserError(
                f"UCF101 in {self.root}: {len(missing)} of the {len(videos)} videos listed for '{split}' are not in "
                f"{self.video_folder}, such as {missing[0].class_name}/{missing[0].file_name}: unpack the archive "
                "again, or remove them from the lists"
            )
        return [
            VideoItem(self.video_folder / video.class_name / video.file_name, self.class_ids[video.class_name])
            for video in videos
        ]

    def _check_folders(self) -> None:
        without = [name for name in self.class_ids if not (self.video_folder / name).is_dir()]
        if without:
            raise UserError(
                f"UCF101 in {self.root}: classInd.txt lists {len(without)} classes without a folder in "
                f"{self.video_folder}, such as {without[0]}: unpack the archive again, or correct the file"
            )
        unnamed = sorted({path.parent.name for path in self.video_folder.glob("*/v_*.avi")} - set(self.class_ids))
        if unnamed:
            raise UserError(
                f"UCF101 in {self.root}: class folder {self.video_folder / unnamed[0]} is not in classInd.txt: "
                "add its class with the next number, or remove the folder"
            )


def find(root: Path, folders: Iterable[str], name: str) -> Path:
    """Return the first `<root>/<folder>/<name>` that exists."""
    found = next((path for path in (root / folder / name for folder in folders) if path.exists()), None)
    if found is None:
        raise UserError(f"UCF101: '{root}' has no {name} in any of {', '.join(folders)}; {REMEDY}")
    return found


def groups_of(videos: list[ListedVideo]) -> set[tuple[str, int]]:
    """Return the (class, group) pairs of videos."""
    return {(video.class_name, video.group) for video in videos}


def read_class_names(path: Path) -> dict[str, int]:
    """Return the id of each class, from 0, read from lines such as "1 ApplyEyeMakeup".

    Raises:
        UserError: a line has another form, or the classes are not numbered 1, 2, ... without repetition.
    """
    class_ids: dict[str, int] = {}
    for line in _lines(path):
        match = _CLASS_LINE.fullmatch(line)
        if match is None:
            raise UserError(
                f"{path}: expected lines such as '1 ApplyEyeMakeup', found {line[:60]!r}: download it again"
            )
        class_ids[match["class_name"]] = int(match["number"]) - 1
        if int(match["number"]) != len(class_ids):
            raise UserError(
                f"{path}: the number in line '{line}' should be {len(class_ids)}, or its class is listed twice: "
                "download it again"
            )
    if not class_ids:
        raise UserError(f"{path} lists no classes: download it again")
    return class_ids


def read_list(path: Path, class_ids: dict[str, int]) -> list[ListedVideo]:
    """Return the videos of a list, with lines such as "YoYo/v_YoYo_g08_c01.avi 101"; test lists have no number.

    Raises:
        UserError: a line has another form, its class or number contradicts classInd.txt, or the list is empty.
    """
    videos = []
    for line in _lines(path):
        match = _LIST_LINE.fullmatch(line)
        if match is None:
            raise UserError(
                f"{path}: expected lines such as 'YoYo/v_YoYo_g08_c01.avi 101', found {line[:60]!r}: download it again"
            )
        number = None if match["number"] is None else int(match["number"])
        class_id = class_ids.get(match["class_name"])
        if class_id is None or number not in (None, class_id + 1):
            conflict = "does not have this class" if class_id is None else f"has number {class_id + 1}"
            raise UserError(f"{path}: for line '{line}', classInd.txt {conflict}: download the lists again")
        videos.append(ListedVideo(match["class_name"], match["file_name"], int(match["group"]), number))
    if not videos:
        raise UserError(f"{path} lists no videos: download it again")
    return videos


def _lines(path: Path) -> list[str]:
    try:
        lines = read_regular(path).decode().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path} ({error}): download it again") from error
    return [line.strip() for line in lines if line.strip()]


def first_groups(videos: list[ListedVideo], num_groups: int) -> list[ListedVideo]:
    """Return the videos of the `num_groups` lowest-numbered groups of each class."""
    first: dict[str, list[int]] = {}
    for class_name, group in sorted(groups_of(videos)):
        first.setdefault(class_name, []).append(group)
    return [video for video in videos if video.group in first[video.class_name][:num_groups]]


class UCF101(VideoDataModule):
    """UCF101, with or without the action class as condition. Needs PyAV: pip install "zigma_pl[video]".

    Splits: `fold` selects one of the three published pairs of lists; the first has 9,537 videos for training and 3,783
    for testing. There is no published validation split: the first `num_validation_groups` groups of each class in the
    test list are used, so do not select a model by them and then report the test score as held out. No group is in both
    training and validation or test.

    Expected under `root`: `UCF-101/<Class>/v_<Class>_gXX_cYY.avi` (or `videos/<Class>`, or the class folders
    themselves), and `ucfTrainTestlist/` with `classInd.txt`, `trainlist0N.txt` and `testlist0N.txt` (or these files
    themselves).

    Args:
        root: folder of the data set.
        fold: number of the published split, 1 to 3.
        condition: "class" or "none".
        num_validation_groups: number of groups of each class in the test list to validate on.
        num_classes: number of classes; None counts those in classInd.txt, or uses the published 101 if that file does
            not exist, as in sampling.
        num_workers: worker processes that decode videos; 0 decodes in the main process.
        options: options of `VideoDataModule`.
    """

    synthetic_version = 1
    smallest_synthetic = 3 * len(MOTIONS)

    def __init__(
        self,
        root: str = "data/ucf101",
        fold: Literal[1, 2, 3] = 1,
        condition: Literal["class", "none"] = "class",
        num_validation_groups: int = 1,
        num_classes: int | None = None,
        num_workers: int = 2,
        **options: Any,
    ) -> None:
        super().__init__(root=root, num_workers=num_workers, **options)
        check_whole_numbers("data", num_validation_groups=num_validation_groups, num_classes=num_classes)
        if num_classes is not None and condition == "none":
            raise UserError("data.num_classes needs data.condition 'class', got 'none': remove num_classes")
        self.fold = fold
        self.conditioned_on = condition
        self.num_validation_groups = num_validation_groups
        self._num_classes = num_classes

    @property
    def num_classes(self) -> int | None:
        """Number of classes: as passed, of the cache, in classInd.txt, or as published; None without classes."""
        if self.conditioned_on == "none" or self._num_classes is not None:
            return self._num_classes
        if self.prepared is not None:
            return self.prepared.content.num_classes
        if self.synthetic:
            return len(MOTIONS)
        paths = (Path(self.root) / folder / "classInd.txt" for folder in LIST_FOLDERS)
        present = next((path for path in paths if path.is_file()), None)
        return NUM_CLASSES if present is None else len(read_class_names(present))

    @num_classes.setter
    def num_classes(self, num_classes: int | None) -> None:
        self._num_classes = num_classes

    @property
    def class_names(self) -> list[str] | None:  # type: ignore[override]  # an attribute of the base class
        """Names in classInd.txt; None without classes, or if the folder does not exist."""
        is_there = self.conditioned_on == "class" and (self.synthetic or Path(self.root).is_dir())
        return list(self._on_disk.class_ids) if is_there else None

    def described(self) -> dict[str, Any]:
        """Return, as plain values, everything that determines the items of a split and their content."""
        return {**super().described(), "condition": self.conditioned_on}

    @property
    def synthetic_name(self) -> str:
        """Folder name of the synthetic data; includes the length of the shortest video."""
        return f"{super().synthetic_name}-{self._shortest_synthetic}frames"

    def write_synthetic(self, folder: Path) -> None:
        """Write videos of moving shapes, one kind of motion per class."""
        write_ucf101(folder, self.num_synthetic_items, self.image_size_px, self._shortest_synthetic)

    def load_split(self, split: Split) -> list[VideoItem]:
        """List one split, creating the synthetic data first if needed.

        Raises:
            UserError: folder, lists or videos are missing or contradict each other.
        """
        on_disk = self._on_disk
        if self.num_classes not in (None, len(on_disk.class_ids)):
            raise UserError(
                f"data.num_classes is {self.num_classes}, but classInd.txt in '{on_disk.root}' has "
                f"{len(on_disk.class_ids)} classes: correct or remove num_classes"
            )
        listed = on_disk.listed["train" if split == "train" else "test"]
        videos = first_groups(listed, self.num_validation_groups) if split == "validation" else listed
        items = on_disk.items(videos, split)
        return items if self.conditioned_on == "class" else [item._replace(class_id=None) for item in items]

    @property
    def _shortest_synthetic(self) -> int:
        return max(SHORTEST_FRAMES, self.cutter.span)

    @cached_property
    def _on_disk(self) -> VideosOnDisk:
        return VideosOnDisk(self.folder, self.fold)
