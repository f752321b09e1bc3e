"""The option that allows a model to use classes of other packages."""

import argparse


def add_allow_import(parser: argparse.ArgumentParser) -> None:
    """Add `--allow_import`, which may be repeated."""
    parser.add_argument(
        "--allow_import",
        action="append",
        default=[],
        metavar="PACKAGE",
        help="import this package if the model uses classes of it; may be repeated",
    )
