"""Features of the held-out real pictures, extracted once for each (data set, split, size, extractor) and kept.

<stem>.json             what they are of, how they were made, and the SHA-256 of the two other files
<stem>.statistics.npz   mean and covariance, as sums
<stem>.features.npy     the features themselves, where a score needs them
"""

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zigma_pl.core.errors import UserError
from zigma_pl.core.files import UNFINISHED, cache_folder, sha256, written_whole
from zigma_pl.core.processes import gather_objects, rank, wait_for_all
from zigma_pl.core.records import Name, Record, Sha256, read_record, write_record
from zigma_pl.core.version import __version__
from zigma_pl.data.npy import map_npy
from zigma_pl.evaluation.features import FeatureSet
from zigma_pl.evaluation.metrics.statistics import FeatureStatistics


class Description(Record):
    """<stem>.json.

    data: what the pictures are, as `describe_real_pictures` says.
    extractor: its fingerprint.
    made_by: versions, for people to read.
    files: SHA-256 of the other files, by name.
    """

    remedy = "remove it, and score again"

    data: dict[str, Any]
    extractor: dict[str, Any]
    made_by: str
    files: dict[Name, Sha256]


def default_reference_folder() -> Path:
    """Return where references are kept if nothing else is said: in the user's cache folder."""
    return cache_folder() / "reference"


@dataclass(frozen=True)
class Reference:
    """What samples are compared with.

    statistics: of the real features.
    features: (n, d) float32 in the split's order, or None where no score needs them.
    num_real: pictures, or clips.
    sha256: of the file of statistics.
    """

    statistics: FeatureStatistics
    features: Tensor | None
    num_real: int
    sha256: str


class ReferenceFiles:
    """Where the features of one extractor on one set of real pictures are.

    Args:
        folder: of all references.
        data: what the pictures are, as `describe_real_pictures` says.
        extractor: the extractor's fingerprint.
        name: the extractor's name, and whether it sees frames.
        keeps_versions: keep the features of each version of the extractor, for one that is still being written; else
            another version than that of the kept features is an error.
    """

    def __init__(
        self,
        folder: Path,
        data: dict[str, Any],
        extractor: dict[str, Any],
        name: str,
        *,
        keeps_versions: bool = False,
    ) -> None:
        # As JSON has them: tuples become lists.
        self.data, self.extractor = json.loads(json.dumps(data)), json.loads(json.dumps(extractor))
        self.folder = folder
        stem = f"{data['dataset']}-{data['split']}-{data['items']['image_size_px']}px-{_key(self.data)}-{name}"
        stem += f"-{_key(self.extractor)}" if keeps_versions else ""
        self.description = folder / f"{stem}.json"
        self.statistics = folder / f"{stem}.statistics.npz"
        self.features = folder / f"{stem}.features.npy"

    def load(self, *, with_features: bool) -> Reference | None:
        """Return what is kept, or None when there is nothing yet, or no features although they are asked for.

        Raises:
            UserError: it is of another extractor, or a file is damaged.
        """
        if not self.description.is_file():
            return None
        described = read_record(Description, self.description)
        self._check_extractor(described.extractor)
        wanted = [self.statistics, *([self.features] if with_features else [])]
        if any(path.name not in described.files for path in wanted):
            return None
        for path in wanted:
            found = sha256(path) if path.is_file() else "nothing"
            if found != described.files[path.name]:
                raise UserError(f"{path}: is not what {self.description.name} says; remove both, and score again")
        statistics = FeatureStatistics.load(self.statistics)
        features = self._load_features(statistics) if with_features else None
        return Reference(statistics, features, self.data["num_pictures"], described.files[self.statistics.name])

    def _load_features(self, statistics: FeatureStatistics) -> Tensor:
        try:
            features = map_npy(self.features)
            if features.dtype != np.float32 or features.shape != (statistics.count, statistics.dim):
                raise ValueError(f"{features.dtype} {features.shape}, not those of {self.statistics.name}")
            if not np.isfinite(features).all():
                raise ValueError("not finite")
        except (OSError, ValueError) as error:
            raise UserError(f"{self.features} holds no features ({error}): remove it, then score again") from error
        return torch.from_numpy(features)

    def save(self, made: FeatureSet) -> None:
        """Keep features; the description is written last, so that what it does not name does not count."""
        self.folder.mkdir(parents=True, exist_ok=True)
        # Under a name of this process's own: rows that are scored side by side may all lack the same reference.
        unfinished = self.statistics.with_name(f"{UNFINISHED}{os.getpid()}-{self.statistics.name}")
        made.statistics.save(unfinished)
        unfinished.replace(self.statistics)
        files = {self.statistics.name: sha256(self.statistics)}
        if made.features is not None:
            with written_whole(self.features) as file:
                np.save(file, made.features.numpy())
            files[self.features.name] = sha256(self.features)
        made_by = f"zigma_pl {__version__}, torch {torch.__version__}"
        described = Description(data=self.data, extractor=self.extractor, made_by=made_by, files=files)
        write_record(described, self.description)

    def _check_extractor(self, kept: dict[str, Any]) -> None:
        for name in dict.fromkeys([*kept, *self.extractor]):
            if kept.get(name) != self.extractor.get(name):
                raise UserError(
                    f"{self.description}: the real features are of an extractor with {name} {kept.get(name)!r}, this "
                    f"one has {self.extractor.get(name)!r}; use the weights of that time, or remove the file to "
                    "extract them again"
                )


def _key(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]


def load_or_make(files: ReferenceFiles, make: Callable[[], FeatureSet], *, with_features: bool) -> Reference:
    """Return a reference, extracted first where it is not kept yet; every process has to call it.

    Args:
        files: where it is kept.
        make: extracts it, on all processes together.
        with_features: whether the features themselves are needed.
    """
    found = files.load(with_features=with_features)
    if all(gather_objects(found is not None)):
        assert found is not None
        return found
    if rank() == 0:
        print(f"extracting the features of {files.data['num_pictures']} real ones, once: {files.description}")
    made = make()
    if rank() == 0:
        files.save(made)
    wait_for_all()  # the files are there from here on
    found = files.load(with_features=with_features)
    assert found is not None
    return found
