"""Base class of all metrics, whose results do not depend on the number of processes."""

from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
import torchmetrics
from torch import Tensor

from zigma_pl.core.errors import UserError


class ScoreMetric(torchmetrics.Metric):
    """A `torchmetrics.Metric` whose states keep their dtypes, and that supports processes without samples.

    Casting the module that a metric is part of (`module.half()`, Lightning's precision "bf16-true") does not cast its
    states. On devices without float64 (MPS) they stay on the CPU.

    Args:
        options: options of `torchmetrics.Metric`.
    """

    full_state_update = False

    def __init__(self, **options: Any) -> None:
        # With caching, a process without new samples would return the cached result without communication, while the
        # other processes wait for it.
        super().__init__(**{"compute_with_cache": False, **options})
        self._empty: dict[str, Tensor] = {}

    def add_list(self, name: str, empty: Tensor) -> None:
        """Add a state that is a concatenation of tensors; `empty` has the shape and dtype without samples."""
        self.add_state(name, default=[], dist_reduce_fx="cat")
        self._empty[name] = empty

    def joined(self, name: str) -> Tensor:
        """Return a state added by `add_list`, concatenated: of this process, or within `compute` of all processes."""
        state = getattr(self, name)
        return state if isinstance(state, Tensor) else torch.cat([self._empty[name].to(self.device), *state])

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """Synchronise; unlike in `torchmetrics.Metric`, empty lists of this process keep their shape and dtype."""
        for name, empty in self._empty.items():
            if isinstance(state := getattr(self, name), list) and not state:
                state.append(empty.to(self.device))
        super().sync(*args, **kwargs)

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = "") -> Self:
        device = fn(torch.zeros(1, device=self.device)).device
        device = torch.device("cpu") if device.type == "mps" else device
        return super()._apply(lambda tensor: tensor.to(device), exclude_state)  # type: ignore[return-value]


def require_each_once(sample_ids: Tensor, num_samples: int | None = None) -> None:
    """Check the sample ids of all processes.

    Args:
        sample_ids: (n,) int64.
        num_samples: expected number; None for any number.

    Raises:
        UserError: an id occurs twice, or the number is not the expected one.
    """
    ids, counts = sample_ids.unique(return_counts=True)
    twice = ids[counts > 1]
    if len(twice):
        raise UserError(
            f"sample {twice[0]} and {len(twice) - 1} more occur twice, so scores would be wrong: remove the samples "
            "that a distributed sampler added as padding"
        )
    if num_samples is not None and len(sample_ids) != num_samples:
        raise UserError(f"expected {num_samples} samples to score, got {len(sample_ids)}: add the missing samples")
