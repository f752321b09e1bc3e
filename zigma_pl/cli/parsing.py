"""Parsing the options of a command: YAML configs, command-line options, and one-line errors."""

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import reduce
from operator import or_
from typing import Any, ClassVar, NoReturn, TypeVar, get_args

from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from zigma_pl.core.shipped import find_config, shipped_file
from zigma_pl.data.base import ImageDataModule
from zigma_pl.training.module import GenerativeModule

CLI = TypeVar("CLI", bound=LightningCLI)


class Parser(LightningArgumentParser):
    """Report an error in the options on one line, without the usage text, and refuse abbreviated options."""

    command: ClassVar[str] = "fit"  # a class attribute, so that jsonargparse's parsers of nested classes have it too

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **options})

    def dump(self, *args: Any, **options: Any) -> str:
        """Return a config as text, without checking it again: it was checked when it was parsed."""
        return super().dump(*args, **{**options, "skip_validation": True})

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print the message on one line and exit with status 2."""
        help_command = f"python -m zigma_pl {self.command} --help"
        print(f"error: {' '.join(message.split())} (options: {help_command})", file=sys.stderr)
        sys.exit(2)


def put_int_first(action: Any) -> None:
    """Make an option of type int | float parse "1" as int: for limit_train_batches 1 is one batch and 1.0 all of them.

    jsonargparse tries the types of a union in order. Python's typing caches Union[int, float] and Union[float, int] as
    one object, so their order depends on which library created it first.
    """
    parts = get_args(getattr(action, "_typehint", None))
    if {int, float} <= {part for part in parts if isinstance(part, type)}:
        action._typehint = reduce(or_, [int, *(part for part in parts if part is not int)])


def quieten() -> None:
    """Silence tips of Lightning, and warnings about internals of libraries."""
    warnings.filterwarnings("ignore", message=r".*isinstance\(treespec, LeafSpec\).*")
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*exists and is not empty.*")  # `--ckpt_path last` continues in it
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(lambda record: "Tip:" not in str(record.msg))


def with_shipped_configs(argv: list[str]) -> list[str]:
    """Return the arguments, with the full path of each `--config FILE` that exists only among the shipped files."""
    found = list(argv)
    for index, argument in enumerate(argv):
        if argument.startswith("--config="):
            found[index] = f"--config={find_config(argument.removeprefix('--config='))}"
        elif argument == "--config" and index + 1 < len(argv):
            found[index + 1] = str(find_config(argv[index + 1]))
    return found


@contextmanager
def process_arguments(argv: list[str]) -> Iterator[None]:
    """Set sys.argv to `argv`: LightningCLI reads it, and DDP starts the other processes with it."""
    program, sys.argv = sys.argv, [sys.argv[0], *argv]
    try:
        yield
    finally:
        sys.argv = program


def run_cli(cli_class: type[CLI], command: str, argv: list[str], parser_kwargs: dict[str, Any], **options: Any) -> CLI:
    """Run `cli_class` with the options of a command."""
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


def parser_of(command: str, description: str, options: str = "--config FILE.yaml [options]") -> dict[str, Any]:
    """Return the arguments of the parser of one command."""
    return {
        "usage": f"python -m zigma_pl {command} {options}",
        "description": description,
        # An absolute path: LightningCLI silently skips a relative one that does not exist.
        "default_config_files": [str(shipped_file("configs/base.yaml"))],
        "parser_mode": "omegaconf",
    }
