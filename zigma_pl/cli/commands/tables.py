"""`python -m zigma_pl tables`: write experiments/README.md and docs/results.md from experiments and result records."""

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from zigma_pl.cli.commands.parser import Parser
from zigma_pl.core.errors import UserError
from zigma_pl.core.files import remove_leftovers, written_whole
from zigma_pl.core.shipped import shipped_file

if TYPE_CHECKING:
    from zigma_pl.suite.report.experiments import Experiment
    from zigma_pl.suite.report.results import RecordCollection


def main(argv: list[str]) -> int:
    """Write both files, or compare them with --check; returns the exit status."""
    from zigma_pl.suite.report.markdown import experiments_index, results_page

    options = _parser().parse_args(argv)
    experiments, results = read_sources(options.experiments, options.results)
    to_results = Path(os.path.relpath(options.out, options.index.parent)).as_posix()
    texts = {
        options.index: experiments_index(experiments, results, to_results),
        options.out: results_page(experiments, results, options.out, options.results),
    }
    if options.check:
        return _check(texts)
    for path, text in texts.items():
        _write(path, text)
        print(path)
    return 0


def add_sources(parser: argparse.ArgumentParser) -> None:
    """Add the options for the folders of experiments and records."""
    parser.add_argument(
        "--results",
        type=Path,
        default=Path("results"),
        metavar="FOLDER",
        help="folder of the result records, which is searched recursively (default: results)",
    )
    parser.add_argument(
        "--experiments",
        type=Path,
        default=shipped_file("experiments/digits.yaml").parent,
        metavar="FOLDER",
        help="folder of the experiments' YAML files (default: the shipped experiments/)",
    )


def read_sources(experiments: Path, records: Path) -> "tuple[list[Experiment], RecordCollection]":
    """Read experiments and records; records of unknown experiments are left out with a message."""
    from zigma_pl.suite.report.experiments import load_experiments
    from zigma_pl.suite.report.results import RecordCollection, load_results

    loaded, results = load_experiments(experiments), load_results(records)
    names = {experiment.name for experiment in loaded}
    for result in results:
        if result.experiment not in names:
            print(f"{result.file}: left out: {experiments} has no {result.experiment}.yaml", file=sys.stderr)
    return loaded, RecordCollection([result for result in results if result.experiment in names])


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m zigma_pl tables",
        description="Write the index of experiments and the tables of results beside the published numbers.",
    )
    add_sources(parser)
    for option, default, what in (
        ("--index", "experiments/README.md", "index of the experiments"),
        ("--out", "docs/results.md", "tables of results"),
    ):
        help_text = f"{what} (default: {default})"
        parser.add_argument(option, type=Path, default=Path(default), metavar="FILE", help=help_text)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a file is out of date")
    return parser


def _check(texts: dict[Path, str]) -> int:
    stale = [str(path) for path, text in texts.items() if not path.is_file() or path.read_bytes() != text.encode()]
    if stale:
        print(
            f"error: {' and '.join(stale)} {'are' if len(stale) > 1 else 'is'} out of date: run `python -m zigma_pl "
            "tables` and commit the files together with the records in results/",
            file=sys.stderr,
        )
    return 1 if stale else 0


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(path)
        with written_whole(path) as file:
            file.write(text.encode())
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror}): choose another path with --index or --out"
        ) from error
