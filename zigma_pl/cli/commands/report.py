"""`python -m zigma_pl report`: an HTML page with tables, curves, samples and protocols."""

import argparse
from pathlib import Path

from zigma_pl.cli.commands.parser import Parser
from zigma_pl.cli.commands.tables import add_sources, read_sources
from zigma_pl.core.errors import UserError


def main(argv: list[str]) -> int:
    """Write the page and print its path; returns the exit status."""
    from zigma_pl.suite.report.page import write_report

    options = _parser().parse_args(argv)
    if options.out.suffix != ".html":
        raise UserError(f"--out {options.out}: the name must end in .html")
    experiments, results = read_sources(options.experiments, options.results)
    try:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        write_report(experiments, results, options.results, options.out)
    except OSError as error:
        raise UserError(f"--out {options.out}: cannot be written ({error.strerror}): choose another path") from error
    print(options.out)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m zigma_pl report",
        description="Write an HTML page and its folder `assets`. A browser opens the page without a server.",
    )
    add_sources(parser)
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("report/index.html"),
        metavar="FILE",
        help="the page; `assets` is written beside it (default: report/index.html)",
    )
    return parser
