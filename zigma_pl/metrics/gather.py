"""Samples of all processes in one place, each once, in the same order whatever the number of processes.

Axes: n samples, d features.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, distributed

from zigma_pl.errors import UserError


def check_sample_ids(sample_ids: Iterable[int] | Tensor, num_samples: int) -> None:
    """Check that over all processes there are as many samples as there should be, and none twice.

    To be called on every process; all raise if one would.

    Args:
        sample_ids: ids of this process's samples.
        num_samples: expected over all processes.

    Raises:
        UserError: an id is there twice, or the number is another.
    """
    ids = [sample_id for part in gather_objects(_plain(sample_ids)) for sample_id in part]
    _require_each_once(ids, num_samples)


def gather_features(sample_ids: Iterable[int] | Tensor, features: Tensor, num_samples: int) -> Tensor:
    """Return the features of all processes, sorted by sample id, on the CPU of each.

    KID, precision and recall need all of them, and draw subsets by position: so that order must not depend on the
    number of processes.

    Args:
        sample_ids: ids of this process's samples.
        features: theirs, (n, d).
        num_samples: expected over all processes.

    Raises:
        UserError: an id is there twice, or the number is another.
    """
    ids = _plain(sample_ids)
    assert len(ids) == len(features)
    parts = gather_objects((ids, features.detach().cpu().numpy()))
    all_ids = [sample_id for part, _ in parts for sample_id in part]
    _require_each_once(all_ids, num_samples)
    order = torch.tensor(all_ids).argsort()
    return torch.cat([torch.from_numpy(array) for _, array in parts])[order]


def gather_objects(mine: Any) -> list[Any]:
    """Return what each process gave, in order of rank; of one process, a list of one."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return [mine]
    parts: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(parts, mine)
    return parts


def _plain(sample_ids: Iterable[int] | Tensor) -> list[int]:
    return sample_ids.tolist() if isinstance(sample_ids, Tensor) else list(sample_ids)


def _require_each_once(ids: list[int], num_samples: int) -> None:
    twice = sorted({first for first, second in zip(sorted(ids), sorted(ids)[1:], strict=False) if first == second})
    if twice:
        raise UserError(f"sample {twice[0]} and {len(twice) - 1} more are there twice: scores of them would be wrong")
    if len(ids) != num_samples:
        raise UserError(f"there are {len(ids)} samples, but {num_samples} are to be scored")
