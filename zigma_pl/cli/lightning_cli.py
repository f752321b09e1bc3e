"""`fit`, `validate`, `test` and `predict`: LightningCLI over one module, one data module and YAML layers.

Later layers win: constructor defaults, configs/base.yaml, each --config in turn, command-line options.
"""

import sys
from pathlib import Path
from typing import Any

import lightning as L
import torch
from jsonargparse import Namespace
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins.environments import SLURMEnvironment
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from zigma_pl.cli.fit_messages import all_missing_at_once, closing_lines
from zigma_pl.cli.parsing import Parser, parser_of, put_int_first, run_cli
from zigma_pl.cli.saved_config import CONFIG_FILE, SaveConfigOnFit
from zigma_pl.core.errors import UserError, causes
from zigma_pl.core.ranges import LARGEST_SEED
from zigma_pl.data.base import ImageDataModule
from zigma_pl.data.from_options import make_data_module
from zigma_pl.data.specification import Specification, fill_from
from zigma_pl.interop.folder import from_pretrained
from zigma_pl.interop.training_checkpoint import initialise
from zigma_pl.training.callbacks.activation_memory import ActivationMemory
from zigma_pl.training.callbacks.agreement import Agreement
from zigma_pl.training.callbacks.checkpoint import Checkpoint
from zigma_pl.training.callbacks.checkpoint_options import Group, stored_specification
from zigma_pl.training.callbacks.ema import EMA
from zigma_pl.training.callbacks.non_finite import NonFiniteGuard
from zigma_pl.training.callbacks.preemption import Preempted, Preemption
from zigma_pl.training.callbacks.preview import PreviewGrid
from zigma_pl.training.callbacks.progress import StepProgressBar
from zigma_pl.training.callbacks.sample_writer import SampleWriter
from zigma_pl.training.callbacks.scorer import Scorer
from zigma_pl.training.callbacks.throughput import Throughput
from zigma_pl.training.callbacks.training_totals import TrainingTotals
from zigma_pl.training.checkpoints.archive import read_step
from zigma_pl.training.checkpoints.io import Weights, WholeFileIO, check_readable
from zigma_pl.training.checkpoints.last import LastRun, last_run
from zigma_pl.training.checkpoints.newest import CHECKPOINT_FOLDER
from zigma_pl.training.checkpoints.restoring import CheckedConnector
from zigma_pl.training.checkpoints.run_folder import (
    WITH_FOLDER,
    RunFolders,
    fix_versions,
    has_folder,
    keep_rows,
    no_empty_run,
)
from zigma_pl.training.launcher import Launcher
from zigma_pl.training.lightning_private import (
    cluster_environment,
    replace_checkpoint_connector,
    replace_script_launcher,
)
from zigma_pl.training.loggers import TensorBoard
from zigma_pl.training.module import GenerativeModule
from zigma_pl.training.trainer_options import check_trainer_options, default_precision

REFUSALS = (MisconfigurationException, ModuleNotFoundError)  # errors of Lightning and its loggers

DESCRIPTIONS = {
    "fit": "Train a model.",
    "validate": "Compute the validation loss of a checkpoint, on fixed noise and times.",
    "test": "Score a checkpoint: loss on the test split, and samples compared with real images.",
    "predict": "Sample from a checkpoint: its classes in turn, or the captions given as --data.predict_captions, by "
    "default some captions of the validation split, which are stored in the checkpoint. A model with both gets every "
    "class with the first caption, then every class with the second. The data set is only needed for conditions that "
    "are computed from images, such as maps.",
}

OPTIONS = dict.fromkeys(DESCRIPTIONS, "--config FILE.yaml --ckpt_path CKPT [options]") | {
    "fit": "--config FILE.yaml [options]"
}


class ZigmaCLI(LightningCLI):
    """LightningCLI with one module, any data module, and a group of options for each callback."""

    _resumed: LastRun | None = None  # the run that `fit --ckpt_path last` resumes

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Return only the current command: adding the options of the others takes time."""
        return {name: skip for name, skip in LightningCLI.subcommands().items() if name == Parser.command}

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the options of model and data; those of the Trainer are added after all others."""
        parser.add_lightning_class_args(GenerativeModule, "model")
        parser.add_lightning_class_args(ImageDataModule, "data", subclass_mode=True)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the options of the callbacks and the Trainer, and pass the seed to module and data."""
        parser.add_argument(
            "--about", type=dict, default={}, help="description of the experiment, for `tables` and `report`"
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
            help="groups of options that may differ from those of the checkpoint given as --ckpt_path",
        )
        parser.add_argument(
            "--init_from",
            type=str | None,
            default=None,
            help="initialise the model with the weights of this exported model or checkpoint, with a new optimiser; "
            "ignored if --ckpt_path resumes a run",
        )
        parser.add_argument(
            "--init_weights", type=Weights, default="average", help="averaged or raw weights of the checkpoint"
        )
        parser.add_argument(
            "--weak_model",
            type=str | None,
            default=None,
            help="folder of a weaker exported model; guidance leads away from it instead of dropping conditions",
        )
        parser.add_lightning_class_args(self.trainer_class, "trainer")
        for action in parser._actions:
            put_int_first(action)
        parser.link_arguments("seed_everything", "model.seed", compute_fn=int)
        parser.link_arguments("seed_everything", "data.init_args.seed", compute_fn=int)

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse the options, and check seed and Trainer options before any object is created."""
        super().parse_arguments(parser, args)
        options = self.config.get(str(self.config.get("subcommand")), self.config)
        seed = options.seed_everything
        if seed is not False and (seed is True or not 0 <= seed <= LARGEST_SEED):
            raise UserError(f"seed_everything: must be a whole number from 0 to {LARGEST_SEED:,}, got {seed}")
        check_trainer_options(options.trainer.as_dict())

    def before_instantiate_classes(self) -> None:
        """Fill in options that follow from the data; add the progress bar and the check that all processes agree."""
        self._fill_from_data_or_checkpoint()
        self._name_run()
        trainer = self._get(self.config, "trainer")
        if trainer.precision is None:
            trainer.precision = default_precision(trainer)
        options = vars(self.config[self.config["subcommand"]].as_flat())
        compared = {name: value for name, value in options.items() if name not in ("config", "ckpt_path")}
        self.trainer_defaults["callbacks"] = [Agreement(compared), ActivationMemory()]
        if trainer.enable_progress_bar is not False:
            self.trainer_defaults["callbacks"].append(StepProgressBar())

    def instantiate_classes(self) -> None:
        """Build module, data module and Trainer.

        Raises: UserError if Lightning or a logger rejects its options.
        """
        try:
            super().instantiate_classes()
        except (MisconfigurationException, ModuleNotFoundError, ValueError) as error:
            refusal = next((cause for cause in causes(error) if isinstance(cause, REFUSALS)), None)
            if refusal is None:
                raise
            raise UserError(f"invalid options: {refusal}") from error
        weak_model = self._get(self.config, "weak_model")
        if weak_model is not None:
            self.model.guide_with(from_pretrained(weak_model))

    def _name_run(self) -> None:
        """Name the run after the experiment, unless its logger has a name."""
        options = self.config[self.config["subcommand"]]
        for logger in filter(has_folder, _as_list(options.trainer.logger)):
            if logger.init_args.get("name") is None:
                logger.init_args.name = _experiment_of(options.config)

    def _fill_from_data_or_checkpoint(self) -> None:
        """Set the backbone's options that are not given: from the checkpoint if there is one, else from the data."""
        command = self.config["subcommand"]
        options = self.config[command]
        path, backbone = options.get("ckpt_path"), options.model.backbone.get("init_args", Namespace())
        if command != "fit" and path is not None:
            stored = stored_specification(Path(path))
            fill_from(stored, backbone)
            if command == "predict":  # the data set may be missing
                fill_from({"num_classes": stored.get("num_classes")}, options.data.init_args)
        if any(backbone.get(name, "not an option") is None for name in Specification._fields):
            with all_missing_at_once(options):
                fill_from(Specification.of(make_data_module(options.data))._asdict(), backbone)

    def fit(self, **options: Any) -> None:
        """Train; report all missing files in one error, and at the end where the results are."""
        with all_missing_at_once(self.config["fit"]):
            self.datamodule.setup("fit")
        with no_empty_run(self.trainer):
            self.trainer.fit(**options)
        lines = closing_lines(self.trainer)
        if self.trainer.is_global_zero and lines:
            print("\n".join(lines), flush=True)

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        """Build the Trainer with this package's checkpoint reading and writing, without requeueing by Lightning."""
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
            raise UserError(f"invalid options of trainer: {error}") from error
        fix_versions(trainer)
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, Checkpoint):
                callback.allow_changed = tuple(self._get(self.config, "allow_changed"))
        replace_checkpoint_connector(trainer, CheckedConnector(trainer))
        environment = cluster_environment(trainer)
        if isinstance(environment, SLURMEnvironment):
            environment.auto_requeue = False  # `last` would not find its checkpoints, and it would load them unasked
        replace_script_launcher(trainer, Launcher)
        if self._resumed is not None and trainer.is_global_zero:
            for logger in trainer.loggers:
                if isinstance(logger, CSVLogger):
                    keep_rows(logger, read_step(self._resumed.checkpoint) or 0)
        return trainer

    def before_fit(self) -> None:
        """Load the weights of --init_from, unless a run is resumed."""
        options = self.config["fit"]
        if options.init_from is not None and options.get("ckpt_path") is None:
            initialise(self.model, options.init_from, options.init_weights)

    def _place_of_run(self, logger: Any) -> dict[str, Any]:
        """Return Trainer options for a run none of whose loggers has a folder."""
        runs = self._run_folders()
        folder = runs.next() if self._resumed is None or self._resumed.folder is None else self._resumed.folder
        if logger in (None, True):
            logger = TensorBoard(str(folder.parents[1]), folder.parent.name, folder.name)
        return {"default_root_dir": folder, "logger": logger}

    def _run_folders(self) -> RunFolders:
        options = self.config[self.config["subcommand"]]
        return RunFolders.of(options.trainer.as_dict(), _experiment_of(options.config))

    def _parse_ckpt_path(self) -> None:
        """Check --ckpt_path. Unlike Lightning, do not replace options by those stored in the checkpoint."""
        command = self.config["subcommand"]
        path = self.config[command].get("ckpt_path")
        if path is None and command != "fit":
            raise UserError(f"{command} needs a checkpoint: pass --ckpt_path (see logs/*/*/checkpoints)")
        if path == "last":
            self._resume_last(command)
        elif path is not None:
            check_readable(Path(path))
        if command != "fit":
            self._log_to_run_of(Path(self.config[command].ckpt_path), command)

    def _log_to_run_of(self, checkpoint: Path, command: str) -> None:
        """Log the scores of a checkpoint in the folder of its run, if it belongs to one; `predict` logs nothing."""
        trainer = self.config[command].trainer
        folder = checkpoint.absolute().parents[1]
        if command == "predict":
            trainer.logger = False
        elif checkpoint.parent.name == CHECKPOINT_FOLDER and (folder / CONFIG_FILE).is_file():
            for logger in filter(has_folder, _as_list(trainer.logger)):
                logger.init_args.save_dir = str(folder.parents[1])
                logger.init_args.name, logger.init_args.version = folder.parent.name, folder.name

    def _resume_last(self, command: str) -> None:
        """Replace "last" by the path of the newest checkpoint; `fit` then continues in the folder of its run."""
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
                logger.init_args.purge_step = read_step(run.checkpoint)  # later steps are logged again


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _experiment_of(configs: list[Any] | None) -> str:
    """Return the name of an experiment: its first config file's, or the run's if that file is a run's config.yaml."""
    if not configs:
        return "run"
    path = Path(str(configs[0])).absolute()
    return path.parents[1].name if path.name == CONFIG_FILE else path.stem


@rank_zero_only
def _warn(line: str) -> None:
    print(f"warning: {line}", file=sys.stderr, flush=True)


@rank_zero_only
def _tell_how_to_resume(preempted: Preempted) -> None:
    print(f"{preempted}: resume with the same command and --ckpt_path last", file=sys.stderr, flush=True)


def main(argv: list[str]) -> int:
    """Run `fit`, `validate`, `test` or `predict` with its options; returns the exit status."""
    command = argv[0]
    try:
        run_cli(
            ZigmaCLI,
            command,
            argv,
            {"prog": "python -m zigma_pl", command: parser_of(command, DESCRIPTIONS[command], OPTIONS[command])},
            save_config_callback=SaveConfigOnFit,
            save_config_kwargs={"overwrite": True},
        )
    except Preempted as preempted:
        _tell_how_to_resume(preempted)
        if torch.distributed.is_initialized():
            torch.distributed.barrier()  # so that no process takes another that has exited for a failed one
            torch.distributed.destroy_process_group()
        return preempted.status
    return 0
