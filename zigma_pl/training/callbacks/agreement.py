"""Check, before anything is computed, that all processes of a run have the same data, options and versions."""

from collections.abc import Mapping
from typing import Any

import lightning as L
import torch

from zigma_pl.core.errors import UserError
from zigma_pl.core.processes import gather_objects
from zigma_pl.core.version import __version__
from zigma_pl.data.base import SPLITS_OF_STAGE, ImageDataModule


class Agreement(L.Callback):
    """Raise a UserError if processes have different data, options or versions, since their results would differ.

    Args:
        options: options of the run, by name.
    """

    def __init__(self, options: Mapping[str, Any] | None = None) -> None:
        self.options = dict(options or {})

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Compare all processes.

        Raises:
            UserError: something differs; raised on every process.
        """
        if trainer.world_size == 1:
            return
        ours = {f"option {name}": str(value) for name, value in self.options.items()}
        ours |= {"version of zigma_pl": __version__, "version of torch": torch.__version__}
        data = trainer.datamodule  # type: ignore[attr-defined]
        if isinstance(data, ImageDataModule):
            ours |= {f"{split} split": data.split_fingerprint(split) for split in SPLITS_OF_STAGE[stage]}
        first, *others = gather_objects(ours)
        for rank, other in enumerate(others, start=1):
            for name in {**first, **other}:  # in the same order on every process
                if first.get(name) != other.get(name):
                    raise UserError(
                        f"{name}: process 0 has {first.get(name)}, process {rank} has {other.get(name)}: start all "
                        "processes with the same code, options and data"
                    )
