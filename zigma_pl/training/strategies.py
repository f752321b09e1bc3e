"""Fully sharded training: parameters, gradients, AdamW's moments and the EMA are sharded over all processes."""

from collections.abc import Mapping
from typing import Any

from lightning.pytorch.strategies import ModelParallelStrategy

from zigma_pl.runtime.sharding import load_whole, load_whole_optimizer
from zigma_pl.training.lightning_private import spread_over

__all__ = ["FullySharded"]


class FullySharded(ModelParallelStrategy):
    """FSDP2 over all processes of all nodes. Checkpoints are the same as without sharding, and load with any strategy.

    `GenerativeModule.configure_model` shards the parameters. Based on Lightning's strategy for FSDP2, which by default
    uses tensor parallelism within a node and distributed checkpoints, and does not restore the EMA.
    """

    lightning_restore_optimizer = True

    def __init__(self) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False)

    def setup_environment(self) -> None:
        """Shard over all processes, whose number is known now."""
        spread_over(self, self.num_nodes * self.num_processes)
        super().setup_environment()

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Read the full checkpoint, like other strategies."""
        return self.checkpoint_io.load_checkpoint(checkpoint_path, weights_only=weights_only)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Load this process's shard of the weights."""
        assert self.lightning_module is not None
        load_whole(self.lightning_module, checkpoint["state_dict"])

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Load this process's shard of the moments."""
        assert self.lightning_module is not None
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            load_whole_optimizer(self.lightning_module, optimizer, state)
