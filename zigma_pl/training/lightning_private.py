"""All private names of Lightning used in this package, to be checked when Lightning is upgraded."""

from typing import Any

import lightning as L
from lightning.fabric.utilities.distributed import _set_num_threads_if_needed
from lightning.pytorch.core.mixins.hparams_mixin import _given_hyperparameters
from lightning.pytorch.plugins.environments import ClusterEnvironment
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher
from lightning.pytorch.trainer.connectors.checkpoint_connector import _CheckpointConnector

FETCH = "[_TrainingEpochLoop].train_dataloader_next"  # Lightning's profiler action for loading a batch


class ScriptLauncher(_SubprocessScriptLauncher):
    """Starts the other processes of a node by running the command again."""

    def start_others(self) -> None:
        """Start the other processes of this node, and divide the CPU threads among all."""
        if not self.cluster_environment.creates_processes_externally:
            self._call_children_scripts()
        _set_num_threads_if_needed(num_processes=self.num_processes)


def replace_script_launcher(trainer: L.Trainer, launcher_class: type[ScriptLauncher]) -> None:
    """Use another launcher class, if the other processes are started by running the command again."""
    launcher = trainer.strategy.launcher
    if isinstance(launcher, _SubprocessScriptLauncher):
        trainer.strategy._launcher = launcher_class(
            launcher.cluster_environment, launcher.num_processes, launcher.num_nodes
        )


class CheckpointConnector(_CheckpointConnector):
    """Restores a checkpoint; exposes Lightning's private hooks under public names."""

    @property
    def loaded(self) -> dict[str, Any]:
        """The checkpoint that is being restored, empty without one."""
        return self._loaded_checkpoint

    @property
    def path(self) -> Any:
        """Path of the checkpoint."""
        return self._ckpt_path

    def restore_model_and_callbacks(self, path: Any = None, weights_only: bool | None = None) -> None:
        """Read a checkpoint, and restore data module, model and callbacks."""
        super()._restore_modules_and_callbacks(path, weights_only)

    def _restore_modules_and_callbacks(self, checkpoint_path: Any = None, weights_only: bool | None = None) -> None:
        self.restore_model_and_callbacks(checkpoint_path, weights_only)


def replace_checkpoint_connector(trainer: L.Trainer, connector: CheckpointConnector) -> None:
    """Make a trainer restore checkpoints with another connector."""
    trainer._checkpoint_connector = connector


def cluster_environment(trainer: L.Trainer) -> ClusterEnvironment:
    """Return the trainer's cluster environment."""
    return trainer._accelerator_connector.cluster_environment


def register_no_signal_handlers(trainer: L.Trainer) -> None:
    """Keep a trainer from installing signal handlers, which would ignore SIGTERM and end training without saving."""
    trainer._signal_connector.register_signal_handlers = _do_nothing  # type: ignore[method-assign]


def _do_nothing() -> None:
    """Replacement of Lightning's function that registers handlers."""


def accumulates(trainer: L.Trainer) -> bool:
    """Whether gradients of the current batch are accumulated without an optimiser step."""
    return trainer.fit_loop._should_accumulate()


def validation_follows(trainer: L.Trainer) -> bool:
    """Whether Lightning's loop validates after the current batch."""
    fetcher = trainer.fit_loop._data_fetcher
    assert fetcher is not None
    return trainer.fit_loop.epoch_loop._should_check_val_fx(fetcher)


def trainer_of(module: L.LightningModule) -> L.Trainer | None:
    """Return a module's trainer, None if it has none, for which `module.trainer` raises."""
    return module._trainer


def is_made_from_options() -> bool:
    """Whether the module under construction gets its arguments from LightningCLI, which stores them as options."""
    return _given_hyperparameters.get() is not None


def spread_over(strategy: ModelParallelStrategy, num_processes: int) -> None:
    """Set the number of processes over which a strategy shards parameters, after its construction."""
    strategy._data_parallel_size = num_processes
