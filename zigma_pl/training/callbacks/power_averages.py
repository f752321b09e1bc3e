"""Power-function averages of the weights during training, from which averages of any width are reconstructed later."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from zigma_pl.core.errors import UserError
from zigma_pl.runtime.sharding import copy_whole, made_whole
from zigma_pl.training.checkpoints.power_function import Profile, decay, exponent_of
from zigma_pl.training.checkpoints.snapshots import write_snapshot
from zigma_pl.training.module import mismatch

SIGMA_RELS = (0.05, 0.1)  # as in the paper; they determine widths between about 0.03 and 0.2
Stored = dict[str, dict[str, Tensor]]


class PowerAverages:
    """Power-function averages of parameters, of the widths `SIGMA_RELS`, in float32 on the parameters' device.

    Args:
        parameters: the parameters by name, which may be sharded.
    """

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        self.step = 0
        self._parameters = dict(parameters)
        self._averages = {
            width: {name: torch.zeros_like(parameter) for name, parameter in self._parameters.items()}
            for width in SIGMA_RELS
        }

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Update the averages with the parameters after an optimiser step; the first step is 1."""
        assert step == self.step + 1
        self.step = step
        for width, averages in self._averages.items():
            weight = 1 - decay(step, exponent_of(width))
            torch._foreach_lerp_(list(averages.values()), list(self._parameters.values()), weight)

    def write(self, run: Path, is_first_process: bool) -> None:
        """Write snapshots of both averages; all processes must call it, and the first one writes."""
        for width, averages in self._averages.items():
            whole = _whole(averages, is_first_process)
            if is_first_process:
                write_snapshot(run, Profile(self.step, width), whole)

    def state(self, is_first_process: bool) -> Stored:
        """Return the averages as full tensors, in the first process; all processes must call it."""
        return {f"{width:g}": _whole(averages, is_first_process) for width, averages in self._averages.items()}

    def load(self, stored: Stored, step: int) -> None:
        """Restore `state` of a step; all processes must have all of it.

        Raises: UserError if it belongs to another network or other widths.
        """
        self.step = step
        for width, averages in self._averages.items():
            found = stored.get(f"{width:g}", {})
            wrong = mismatch(averages, found)
            if wrong is not None:
                raise UserError(f"the checkpoint's average of sigma_rel {width:g} does not fit this run ({wrong})")
            for name, average in averages.items():
                copy_whole(average, found[name])


def _whole(averages: Mapping[str, Tensor], is_first_process: bool) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for name, average in averages.items():
        whole = made_whole(average)
        if is_first_process:
            found[name] = whole.cpu()
    return found
