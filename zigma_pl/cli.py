"""`fit`, `validate`, `test` and `predict`: LightningCLI over one module, one data module and YAML layers.

Later layers win: constructor defaults, configs/base.yaml, each --config in turn, flags.
"""

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, NoReturn, TypeVar

import lightning as L
import torch
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.plugins.environments import SLURMEnvironment
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from zigma_pl.callbacks.agreement import Agreement
from zigma_pl.callbacks.checkpoint import Checkpoint
from zigma_pl.callbacks.ema import EMA
from zigma_pl.callbacks.non_finite import NonFiniteGuard
from zigma_pl.callbacks.preemption import Preempted, Preemption
from zigma_pl.callbacks.preview import PreviewGrid
from zigma_pl.callbacks.progress import Progress
from zigma_pl.callbacks.sample_writer import SampleWriter
from zigma_pl.callbacks.scorer import NO_CHECKPOINT, Scorer
from zigma_pl.callbacks.throughput import Throughput
from zigma_pl.callbacks.training_totals import TrainingTotals
from zigma_pl.checkpoints.io import WholeFileIO, check_readable, read_step
from zigma_pl.checkpoints.last import last_run
from zigma_pl.data.base import ImageDataModule
from zigma_pl.errors import UserError
from zigma_pl.launcher import Launcher
from zigma_pl.module import GenerativeModule
from zigma_pl.shipped import shipped_file

DESCRIPTIONS = {
    "fit": "Train a model.",
    "validate": "Fixed validation loss of a checkpoint.",
    "test": "Score a checkpoint: fixed loss of the test split, and samples against real pictures.",
    "predict": "Sample images from a checkpoint; needs no data set.",
}


class Parser(LightningArgumentParser):
    """Says what is wrong with the options in one line, instead of after a page of usage."""

    command: ClassVar[str] = "fit"  # also the parsers that jsonargparse makes for nested classes know it

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print the message on one line and exit with status 2."""
        help_command = f"python -m zigma_pl {self.command} --help"
        print(f"error: {' '.join(message.split())} (options: {help_command})", file=sys.stderr)
        sys.exit(2)


class SaveConfigOnFit(SaveConfigCallback):
    """Save the whole configuration beside the checkpoints of a training run, and only there."""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Save when training starts."""
        if stage == "fit":
            super().setup(trainer, pl_module, stage)


class ZigmaCLI(LightningCLI):
    """One module, any data module, and callbacks whose options are groups of their own."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the callbacks, and hand the seed to the module and the data."""
        parser.add_argument(
            "--about", type=dict, default={}, help="what the experiment is; only tables and report read it"
        )
        parser.add_lightning_class_args(EMA, "ema")
        parser.add_lightning_class_args(Checkpoint, "checkpoint")
        parser.add_lightning_class_args(NonFiniteGuard, "non_finite")
        parser.add_lightning_class_args(Preemption, "preemption")
        parser.add_lightning_class_args(PreviewGrid, "preview")
        parser.add_lightning_class_args(SampleWriter, "samples")
        parser.add_lightning_class_args(Scorer, "scorer")
        parser.add_lightning_class_args(Throughput, "throughput")
        parser.add_lightning_class_args(TrainingTotals, "training_totals")
        parser.link_arguments("seed_everything", "model.seed", compute_fn=int)
        parser.link_arguments("seed_everything", "data.init_args.seed", compute_fn=int)

    def before_instantiate_classes(self) -> None:
        """Add what needs no options: a comparison of all processes, and our progress bar, unless it is turned off."""
        options = vars(self.config[self.config["subcommand"]].as_flat())
        compared = {name: value for name, value in options.items() if name not in ("config", "ckpt_path")}
        self.trainer_defaults["callbacks"] = [Agreement(compared)]
        if self._get(self.config, "trainer").enable_progress_bar is not False:
            self.trainer_defaults["callbacks"].append(Progress())

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        """Make the trainer, with our way to write and read checkpoints, and without Lightning's way to requeue."""
        given = self._get(self.config_init, "trainer").plugins
        plugins = given if isinstance(given, list) else [] if given is None else [given]
        trainer = super().instantiate_trainer(plugins=[*plugins, WholeFileIO()], **kwargs)
        environment = trainer._accelerator_connector.cluster_environment
        if isinstance(environment, SLURMEnvironment):
            environment.auto_requeue = False  # its checkpoints would be found by no `last`, and be loaded unasked
        launcher = trainer.strategy.launcher
        if isinstance(launcher, _SubprocessScriptLauncher):
            ours = Launcher(launcher.cluster_environment, launcher.num_processes, launcher.num_nodes)
            trainer.strategy._launcher = ours
        return trainer

    def _parse_ckpt_path(self) -> None:
        """Keep the options of the command line: Lightning would replace them by those stored in the checkpoint."""
        command = self.config["subcommand"]
        path = self.config[command].get("ckpt_path")
        if path is None and command == "test":
            raise UserError(NO_CHECKPOINT)
        if path == "last":
            self._go_on_from_last(command)
        elif path is not None:
            check_readable(Path(path))

    def _go_on_from_last(self, command: str) -> None:
        """Put the newest checkpoint in the place of "last"; training goes on in its log folder."""
        options = self.config[command]
        run = last_run(options.trainer.as_dict(), options.checkpoint.dirpath)
        for line in run.passed_over:
            _warn(line)
        options.ckpt_path = str(run.checkpoint)
        if command != "fit" or run.version is None:
            return
        given = options.trainer.logger
        for logger in given if isinstance(given, list) else [given]:
            if "TensorBoardLogger" in str(logger.get("class_path")):
                logger.init_args.version = run.version
                logger.init_args.purge_step = read_step(run.checkpoint)  # what was logged after it is logged again


@rank_zero_only
def _warn(line: str) -> None:
    print(f"warning: {line}", file=sys.stderr, flush=True)


@rank_zero_only
def _say_how_to_go_on(preempted: Preempted) -> None:
    print(f"{preempted}: the same command with --ckpt_path last resumes from there", file=sys.stderr, flush=True)


CLI = TypeVar("CLI", bound=ZigmaCLI)


def quieten() -> None:
    """Silence advertisements, and warnings about the insides of the libraries that a user can do nothing about."""
    warnings.filterwarnings("ignore", message=r".*isinstance\(treespec, LeafSpec\).*")
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*exists and is not empty.*")  # `--ckpt_path last` goes on in its folder
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(lambda record: "Tip:" not in str(record.msg))


@contextmanager
def process_arguments(argv: list[str]) -> Iterator[None]:
    """Make `argv` the arguments of the process, where LightningCLI reads them and with which DDP starts the others."""
    program, sys.argv = sys.argv, [sys.argv[0], *argv]
    try:
        yield
    finally:
        sys.argv = program


def run_cli(cli_class: type[CLI], command: str, argv: list[str], parser_kwargs: dict[str, Any], **options: Any) -> CLI:
    """Read the options of a command over module, data and YAML layers, and do what the class does with them."""
    quieten()
    Parser.command = command
    with process_arguments(argv):
        return cli_class(
            GenerativeModule,
            ImageDataModule,
            subclass_mode_data=True,
            seed_everything_default=0,
            parser_class=Parser,
            parser_kwargs={"parser_mode": "omegaconf", **parser_kwargs},
            auto_configure_optimizers=False,
            **options,
        )


def parser_of(command: str, description: str, options: str = "--config ROW.yaml [options]") -> dict[str, Any]:
    """Return the parser's arguments of one command."""
    return {
        "usage": f"python -m zigma_pl {command} {options}",
        "description": description,
        # By absolute path: LightningCLI skips a missing relative one in silence.
        "default_config_files": [str(shipped_file("configs/base.yaml"))],
        "parser_mode": "omegaconf",
    }


def main(argv: list[str]) -> int:
    """Run `fit`, `validate`, `test` or `predict` with its options; returns the exit status."""
    parsers = {name: parser_of(name, text) for name, text in DESCRIPTIONS.items()}
    try:
        run_cli(
            ZigmaCLI,
            argv[0],
            argv,
            {"prog": "python -m zigma_pl", **parsers},
            save_config_callback=SaveConfigOnFit,
            save_config_kwargs={"overwrite": True},
        )
    except Preempted as preempted:
        _say_how_to_go_on(preempted)
        if torch.distributed.is_initialized():
            torch.distributed.barrier()  # no process is gone, and taken for a failure, while others end
            torch.distributed.destroy_process_group()
        return preempted.status
    return 0
