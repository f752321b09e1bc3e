"""`python -m zigma_pl report`: an HTML page with a summary, samples, tables, charts and protocols."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from zigma_pl.cli.commands.parser import Parser
from zigma_pl.cli.commands.tables import add_sources
from zigma_pl.core.errors import UserError
from zigma_pl.core.shipped import find_config, shipped_file

if TYPE_CHECKING:
    from zigma_pl.suite.report.page import Sources


def main(argv: list[str]) -> int:
    """Write the page and print its path; returns the exit status."""
    from zigma_pl.suite.report.page import write_report

    options = _parser().parse_args(argv)
    if options.out.suffix != ".html":
        raise UserError(f"--out {options.out}: the name must end in .html")
    sources = _read_sources(options)
    try:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        write_report(sources, options.out, [options.reuse / "assets"])
    except OSError as error:
        raise UserError(f"--out {options.out}: cannot be written ({error.strerror}): choose another path") from error
    print(options.out)
    return 0


def _read_sources(options: argparse.Namespace) -> "Sources":
    from zigma_pl.suite.report.experiments import load_experiments
    from zigma_pl.suite.report.own_runs import logged_runs, with_own
    from zigma_pl.suite.report.page import Sources
    from zigma_pl.suite.report.results import RecordCollection, load_results

    results = load_results(options.results)
    experiments = with_own(load_experiments(options.experiments), options.config, results)
    of_tables = {experiment.name for experiment in experiments if experiment.about.table is not None}
    runs = logged_runs(options.logs, results, ignored=of_tables)
    return Sources(experiments, RecordCollection(results), options.results, runs)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m zigma_pl report",
        description="Write an HTML page with tables, curves and samples, and its folder `assets`. "
        "A browser opens it without a server.",
    )
    add_sources(parser)
    parser.add_argument(
        "--config",
        nargs="+",
        action="extend",
        type=find_config,
        default=[],
        metavar="FILE",
        help="configs of other experiments to show, even without results",
    )
    parser.add_argument(
        "--logs",
        type=Path,
        default=Path("logs"),
        metavar="FOLDER",
        help="folder of the runs; those outside the tables are shown even without a record (default: logs)",
    )
    parser.add_argument(
        "--reuse",
        type=Path,
        default=shipped_file("experiments/digits.yaml").parents[1] / "docs" / "report",
        metavar="FOLDER",
        help="an earlier report, whose images and curves replace missing ones (default: docs/report)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("report/index.html"),
        metavar="FILE",
        help="the page; `assets` is written beside it (default: report/index.html)",
    )
    return parser
