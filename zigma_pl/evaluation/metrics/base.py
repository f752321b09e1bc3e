"""What all scores have in common: they are `torchmetrics.Metric`s that do not depend on the number of processes."""

from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
import torchmetrics
from torch import Tensor

from zigma_pl.core.errors import UserError


class ScoreMetric(torchmetrics.Metric):
    """A `torchmetrics.Metric` whose states keep their types, and that allows a process without any sample.

    Casting the module that a metric is part of (`module.half()`, Lightning's precision "bf16-true") does not round the
    states. On a device without float64 (MPS) they stay on the CPU.

    Args:
        options: those of `torchmetrics.Metric`.
    """

    full_state_update = False

    def __init__(self, **options: Any) -> None:
        # A cached result would be returned without communication on a process that got no sample since, while the
        # others wait for it.
        super().__init__(**{"compute_with_cache": False, **options})
        self._empty: dict[str, Tensor] = {}

    def add_list(self, name: str, empty: Tensor) -> None:
        """Add a state that is the concatenation of tensors; `empty` is one of no samples, with its shape and type."""
        self.add_state(name, default=[], dist_reduce_fx="cat")
        self._empty[name] = empty

    def joined(self, name: str) -> Tensor:
        """Return a state that was added by `add_list`: of this process, or within `compute` of all of them."""
        state = getattr(self, name)
        return state if isinstance(state, Tensor) else torch.cat([self._empty[name].to(self.device), *state])

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """As in `torchmetrics.Metric`, which would send a float32 vector for a list that is empty on this process."""
        for name, empty in self._empty.items():
            if isinstance(state := getattr(self, name), list) and not state:
                state.append(empty.to(self.device))
        super().sync(*args, **kwargs)

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = "") -> Self:
        device = fn(torch.zeros(1, device=self.device)).device
        device = torch.device("cpu") if device.type == "mps" else device
        return super()._apply(lambda tensor: tensor.to(device), exclude_state)  # type: ignore[return-value]


def require_each_once(sample_ids: Tensor, num_samples: int | None = None) -> None:
    """Check the ids of the samples of all processes.

    Args:
        sample_ids: (n,) int64.
        num_samples: how many there should be; None for any number.

    Raises:
        UserError: an id is there twice, or the number is another.
    """
    ids, counts = sample_ids.unique(return_counts=True)
    twice = ids[counts > 1]
    if len(twice):
        raise UserError(
            f"sample {twice[0]} and {len(twice) - 1} more are there twice, so scores would be wrong: leave out the "
            "samples that a distributed sampler has added"
        )
    if num_samples is not None and len(sample_ids) != num_samples:
        raise UserError(f"there are {len(sample_ids)} samples, but {num_samples} are to be scored")
