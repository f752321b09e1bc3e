"""Features of the held-out real images, extracted once for each (data set, split, size, extractor) and cached.

<stem>.json             description of images and extractor, and the SHA-256 of the two other files
<stem>.statistics.npz   mean and covariance, as sums
<stem>.features.npy     the features themselves, if a score needs them
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


class ReferenceDescription(Record):
    """The file <stem>.json.

    data: result of `describe_real_pictures`.
    extractor: fingerprint of the extractor.
    made_by: versions, for information only.
    files: SHA-256 of the other files, by name.
    """

    remedy = "remove it and score again"

    data: dict[str, Any]
    extractor: dict[str, Any]
    made_by: str
    files: dict[Name, Sha256]


def default_reference_folder() -> Path:
    """Return the default folder of references, in the user's cache folder."""
    return cache_folder() / "reference"


@dataclass(frozen=True)
class Reference:
    """The features that samples are compared with.

    statistics: statistics of the real features.
    features: (n, d) float32 in the split's order, None if no score needs them.
    num_real: number of real images or clips.
    sha256: hash of the statistics file.
    """

    statistics: FeatureStatistics
    features: Tensor | None
    num_real: int
    sha256: str


class ReferenceFiles:
    """The files with the features of one extractor on one set of real images.

    Args:
        folder: folder of all references.
        data: result of `describe_real_pictures`.
        extractor: fingerprint of the extractor.
        name: name of the extractor, including whether it gets single frames.
        keeps_versions: store the features of each version of the extractor separately, for extractors under
            development; otherwise it is an error if the stored features are from another version.
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
        # As in the JSON file, where tuples become lists.
        self.data, self.extractor = json.loads(json.dumps(data)), json.loads(json.dumps(extractor))
        self.folder = folder
        stem = f"{data['dataset']}-{data['split']}-{data['items']['image_size_px']}px-{_key(self.data)}-{name}"
        stem += f"-{_key(self.extractor)}" if keeps_versions else ""
        self.description = folder / f"{stem}.json"
        self.statistics = folder / f"{stem}.statistics.npz"
        self.features = folder / f"{stem}.features.npy"

    def load(self, *, with_features: bool) -> Reference | None:
        """Return the stored reference; None if there is none, or if it has no features but they are requested.

        Raises:
            UserError: it is from another version of the extractor, or a file is damaged.
        """
        if not self.description.is_file():
            return None
        described = read_record(ReferenceDescription, self.description)
        self._check_extractor(described.extractor)
        wanted = [self.statistics, *([self.features] if with_features else [])]
        if any(path.name not in described.files for path in wanted):
            return None
        for path in wanted:
            found = sha256(path) if path.is_file() else "nothing"
            if found != described.files[path.name]:
                raise UserError(f"{path} does not match {self.description.name}: remove both files and score again")
        statistics = FeatureStatistics.load(self.statistics)
        features = self._load_features(statistics) if with_features else None
        return Reference(statistics, features, self.data["num_pictures"], described.files[self.statistics.name])

    def _load_features(self, statistics: FeatureStatistics) -> Tensor:
        try:
            features = map_npy(self.features)
            if features.dtype != np.float32 or features.shape != (statistics.count, statistics.dim):
                raise ValueError(f"{features.dtype} {features.shape} do not match {self.statistics.name}")
            if not np.isfinite(features).all():
                raise ValueError("not finite")
        except (OSError, ValueError) as error:
            raise UserError(
                f"{self.features} is not a file of features ({error}): remove it and score again"
            ) from error
        return torch.from_numpy(features)

    def save(self, made: FeatureSet) -> None:
        """Store features; the description is written last, so incomplete files are ignored."""
        self.folder.mkdir(parents=True, exist_ok=True)
        # With the process id in the name, as several runs may extract the same reference at the same time.
        unfinished = self.statistics.with_name(f"{UNFINISHED}{os.getpid()}-{self.statistics.name}")
        made.statistics.save(unfinished)
        unfinished.replace(self.statistics)
        files = {self.statistics.name: sha256(self.statistics)}
        if made.features is not None:
            with written_whole(self.features) as file:
                np.save(file, made.features.numpy())
            files[self.features.name] = sha256(self.features)
        made_by = f"zigma_pl {__version__}, torch {torch.__version__}"
        described = ReferenceDescription(data=self.data, extractor=self.extractor, made_by=made_by, files=files)
        write_record(described, self.description)

    def _check_extractor(self, kept: dict[str, Any]) -> None:
        for name in dict.fromkeys([*kept, *self.extractor]):
            if kept.get(name) != self.extractor.get(name):
                raise UserError(
                    f"{self.description}: the stored features were extracted with {name} {kept.get(name)!r}, but this "
                    f"extractor has {self.extractor.get(name)!r}: use the same weights, or remove the file to extract "
                    "them again"
                )


def _key(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]


def load_or_make(files: ReferenceFiles, make: Callable[[], FeatureSet], *, with_features: bool) -> Reference:
    """Return a reference, extracting it first if it is not stored; must be called on every process.

    Args:
        files: files of the reference.
        make: extracts the features, on all processes together.
        with_features: whether the features themselves are needed.
    """
    found = files.load(with_features=with_features)
    if all(gather_objects(found is not None)):
        assert found is not None
        return found
    if rank() == 0:
        print(f"extracting features of {files.data['num_pictures']} real images or clips, once: {files.description}")
    made = make()
    if rank() == 0:
        files.save(made)
    wait_for_all()  # the files exist now
    found = files.load(with_features=with_features)
    assert found is not None
    return found
