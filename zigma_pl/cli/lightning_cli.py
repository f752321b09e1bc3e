"""`fit`, `validate`, `test` and `predict`: LightningCLI over one module, one data module and YAML layers.

Later layers win: constructor defaults, configs/base.yaml, each --config in turn, flags.
"""

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import reduce
from operator import or_
from pathlib import Path
from typing import Any, ClassVar, NoReturn, TypeVar, get_args

import lightning as L
import torch
from jsonargparse import Namespace
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.plugins.environments import SLURMEnvironment
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from zigma_pl.cli.fit_messages import all_missing_at_once, closing_lines
from zigma_pl.core.errors import UserError, causes
from zigma_pl.core.ranges import LARGEST_SEED
from zigma_pl.core.shipped import find_config, shipped_file
from zigma_pl.data.base import ImageDataModule
from zigma_pl.data.from_options import make_data_module
from zigma_pl.data.specification import Specification, fill_from
from zigma_pl.interop.training_checkpoint import initialise
from zigma_pl.training.callbacks.agreement import Agreement
from zigma_pl.training.callbacks.checkpoint import Checkpoint
from zigma_pl.training.callbacks.checkpoint_options import Group, stored_specification
from zigma_pl.training.callbacks.ema import EMA
from zigma_pl.training.callbacks.non_finite import NonFiniteGuard
from zigma_pl.training.callbacks.preemption import Preempted, Preemption
from zigma_pl.training.callbacks.preview import PreviewGrid
from zigma_pl.training.callbacks.progress import Progress
from zigma_pl.training.callbacks.sample_writer import SampleWriter
from zigma_pl.training.callbacks.scorer import Scorer
from zigma_pl.training.callbacks.throughput import Throughput
from zigma_pl.training.callbacks.training_totals import TrainingTotals
from zigma_pl.training.checkpoints.archive import read_step
from zigma_pl.training.checkpoints.io import Weights, WholeFileIO, check_readable
from zigma_pl.training.checkpoints.last import LastRun, last_run
from zigma_pl.training.checkpoints.restoring import CheckedConnector
from zigma_pl.training.checkpoints.run_folder import (
    WITH_FOLDER,
    RunFolders,
    fix_versions,
    has_folder,
    keep_rows,
    run_folder,
)
from zigma_pl.training.launcher import Launcher
from zigma_pl.training.lightning_private import (
    cluster_environment,
    replace_checkpoint_connector,
    replace_script_launcher,
)
from zigma_pl.training.module import GenerativeModule
from zigma_pl.training.trainer_options import check_trainer_options

REFUSALS = (MisconfigurationException, ModuleNotFoundError)  # of Lightning and its loggers

DESCRIPTIONS = {
    "fit": "Train a model.",
    "validate": "Fixed validation loss of a checkpoint.",
    "test": "Score a checkpoint: fixed loss of the test split, and samples against real pictures.",
    "predict": "Sample images from a checkpoint; needs no data set.",
}


class Parser(LightningArgumentParser):
    """Says what is wrong with the options in one line, instead of after a page of usage; takes none abbreviated."""

    command: ClassVar[str] = "fit"  # also the parsers that jsonargparse makes for nested classes know it

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **options})

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print the message on one line and exit with status 2."""
        help_command = f"python -m zigma_pl {self.command} --help"
        print(f"error: {' '.join(message.split())} (options: {help_command})", file=sys.stderr)
        sys.exit(2)


class SaveConfigOnFit(SaveConfigCallback):
    """Save the whole configuration beside the checkpoints of a training run, and only there."""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Save when training starts, in the folder of the run whatever its logger."""
        folder = run_folder(trainer)
        if stage == "fit" and trainer.is_global_zero:
            folder.mkdir(parents=True, exist_ok=True)
            self.parser.save(self.config, folder / "config.yaml", skip_unset=False, overwrite=True, multifile=False)


class ZigmaCLI(LightningCLI):
    """One module, any data module, and callbacks whose options are groups of their own."""

    _resumed: LastRun | None = None  # the run that `fit --ckpt_path last` resumes

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Return the command that was asked for: to describe the options of the others takes time."""
        return {name: skip for name, skip in LightningCLI.subcommands().items() if name == Parser.command}

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add model and data first; the many options of the Trainer come last."""
        parser.add_lightning_class_args(GenerativeModule, "model")
        parser.add_lightning_class_args(ImageDataModule, "data", subclass_mode=True)

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
        parser.add_argument(
            "--allow_changed",
            type=Group,
            nargs="+",
            default=[],
            help="options that may differ from those that the checkpoint of --ckpt_path was trained with",
        )
        parser.add_argument(
            "--init_from",
            type=str | None,
            default=None,
            help="fit from the weights of this exported model or checkpoint, with a new optimiser; --ckpt_path, which "
            "resumes a run, goes before it",
        )
        parser.add_argument("--init_weights", type=Weights, default="average", help="which of the checkpoint's weights")
        parser.add_lightning_class_args(self.trainer_class, "trainer")
        for action in parser._actions:
            put_int_first(action)
        parser.link_arguments("seed_everything", "model.seed", compute_fn=int)
        parser.link_arguments("seed_everything", "data.init_args.seed", compute_fn=int)

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse the options, and refuse those of the trainer that do not suit before anything is made."""
        super().parse_arguments(parser, args)
        options = self.config.get(str(self.config.get("subcommand")), self.config)
        seed = options.seed_everything
        if seed is not False and (seed is True or not 0 <= seed <= LARGEST_SEED):
            raise UserError(f"seed_everything {seed}: give a whole number from 0 to {LARGEST_SEED:,}")
        check_trainer_options(options.trainer.as_dict())

    def before_instantiate_classes(self) -> None:
        """Fill in what the data decide, and add a comparison of all processes and our progress bar."""
        self._fill_from_data_or_checkpoint()
        options = vars(self.config[self.config["subcommand"]].as_flat())
        compared = {name: value for name, value in options.items() if name not in ("config", "ckpt_path")}
        self.trainer_defaults["callbacks"] = [Agreement(compared)]
        if self._get(self.config, "trainer").enable_progress_bar is not False:
            self.trainer_defaults["callbacks"].append(Progress())

    def instantiate_classes(self) -> None:
        """Make what the options describe.

        Raises: UserError where Lightning or a logger refuses its options.
        """
        try:
            super().instantiate_classes()
        except (MisconfigurationException, ModuleNotFoundError, ValueError) as error:
            refusal = next((cause for cause in causes(error) if isinstance(cause, REFUSALS)), None)
            if refusal is None:
                raise
            raise UserError(f"these options cannot be used here: {refusal}") from error

    def _fill_from_data_or_checkpoint(self) -> None:
        """Set options of the backbone that are not stated: from the data, after training from the checkpoint."""
        command = self.config["subcommand"]
        options = self.config[command]
        path, backbone = options.get("ckpt_path"), options.model.backbone.get("init_args", Namespace())
        if command != "fit" and path is not None:
            stored = stored_specification(Path(path))
            fill_from(stored, backbone)
            if command == "predict":  # without the data set, which may not be there
                fill_from({"num_classes": stored.get("num_classes")}, options.data.init_args)
        if any(backbone.get(name, "not an option") is None for name in Specification._fields):
            with all_missing_at_once(options):
                fill_from(Specification.of(make_data_module(options.data))._asdict(), backbone)

    def fit(self, **options: Any) -> None:
        """Train, unless something is missing; say at the end where the results are."""
        with all_missing_at_once(self.config["fit"]):
            self.datamodule.setup("fit")
        self.trainer.fit(**options)
        lines = closing_lines(self.trainer)
        if self.trainer.is_global_zero and lines:
            print("\n".join(lines), flush=True)

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        """Make the trainer, with our way to write and read checkpoints, and without Lightning's way to requeue."""
        options = self._get(self.config_init, "trainer")
        given = options.plugins
        plugins = given if isinstance(given, list) else [] if given is None else [given]
        if not any(isinstance(logger, WITH_FOLDER) for logger in _as_list(options.logger)):
            kwargs |= self._place_of_run(options.logger)
        try:
            trainer = super().instantiate_trainer(plugins=[*plugins, WholeFileIO()], **kwargs)
        except (ValueError, TypeError, RuntimeError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"trainer: these options cannot be used: {error}") from error
        fix_versions(trainer)
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, Checkpoint):
                callback.allow_changed = tuple(self._get(self.config, "allow_changed"))
        replace_checkpoint_connector(trainer, CheckedConnector(trainer))
        environment = cluster_environment(trainer)
        if isinstance(environment, SLURMEnvironment):
            environment.auto_requeue = False  # its checkpoints would be found by no `last`, and be loaded unasked
        replace_script_launcher(trainer, Launcher)
        if self._resumed is not None and trainer.is_global_zero:
            for logger in trainer.loggers:
                if isinstance(logger, CSVLogger):
                    keep_rows(logger, read_step(self._resumed.checkpoint) or 0)
        return trainer

    def before_fit(self) -> None:
        """Start from the weights of another model, where that is asked for and no run is resumed."""
        options = self.config["fit"]
        if options.init_from is not None and options.get("ckpt_path") is None:
            initialise(self.model, options.init_from, options.init_weights)

    def _place_of_run(self, logger: Any) -> dict[str, Any]:
        """Return the trainer's options for a run without a logger that has a folder of its own."""
        runs = self._run_folders()
        folder = runs.next() if self._resumed is None or self._resumed.folder is None else self._resumed.folder
        if logger in (None, True):
            logger = TensorBoardLogger(folder.parents[1], folder.parent.name, folder.name, default_hp_metric=False)
        return {"default_root_dir": folder, "logger": logger}

    def _run_folders(self) -> RunFolders:
        options = self.config[self.config["subcommand"]]
        return RunFolders.of(options.trainer.as_dict(), _experiment_of(options.config))

    def _parse_ckpt_path(self) -> None:
        """Keep the options of the command line: Lightning would replace them by those stored in the checkpoint."""
        command = self.config["subcommand"]
        path = self.config[command].get("ckpt_path")
        if path is None and command != "fit":
            raise UserError(f"{command} needs a checkpoint: give --ckpt_path (see logs/*/*/checkpoints)")
        if path == "last":
            self._resume_last(command)
        elif path is not None:
            check_readable(Path(path))

    def _resume_last(self, command: str) -> None:
        """Put the newest checkpoint in the place of "last"; training is resumed in its folder."""
        options = self.config[command]
        run = last_run(self._run_folders(), options.checkpoint.dirpath)
        for line in run.passed_over:
            _warn(line)
        options.ckpt_path = str(run.checkpoint)
        if command != "fit" or run.folder is None:
            return
        self._resumed = run
        for logger in filter(has_folder, _as_list(options.trainer.logger)):
            logger.init_args.version = run.folder.name
            if "purge_step" in logger.init_args:
                logger.init_args.purge_step = read_step(run.checkpoint)  # what was logged after it is logged again


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _experiment_of(configs: list[Any] | None) -> str:
    """Return the name of an experiment: that of its first config file, or of the folder of the run that wrote it."""
    if not configs:
        return "run"
    path = Path(str(configs[0])).absolute()
    return path.parents[1].name if path.name == "config.yaml" else path.stem


def put_int_first(action: Any) -> None:
    """Have an option that takes whole numbers and others keep a whole number as it is: 1 batch is not 1.0, all of them.

    Python's typing returns the same object for Union[int, float] and Union[float, int], whichever was made first by any
    library, and so the order of the two, in which jsonargparse tries them, is left to chance.
    """
    parts = get_args(getattr(action, "_typehint", None))
    if {int, float} <= {part for part in parts if isinstance(part, type)}:
        action._typehint = reduce(or_, [int, *(part for part in parts if part is not int)])


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


def with_shipped_configs(argv: list[str]) -> list[str]:
    """Return arguments in which each `--config FILE` that is found among the shipped files only has its whole path."""
    found = list(argv)
    for place, argument in enumerate(argv):
        if argument.startswith("--config="):
            found[place] = f"--config={find_config(argument.removeprefix('--config='))}"
        elif argument == "--config" and place + 1 < len(argv):
            found[place + 1] = str(find_config(argv[place + 1]))
    return found


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
    argv = with_shipped_configs(argv)
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
    command = argv[0]
    try:
        run_cli(
            ZigmaCLI,
            command,
            argv,
            {"prog": "python -m zigma_pl", command: parser_of(command, DESCRIPTIONS[command])},
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
