"""The option by which a user allows a model to use classes of other packages."""

import argparse


def add_allow_import(parser: argparse.ArgumentParser) -> None:
    """Add `--allow-import`, which may be repeated."""
    parser.add_argument(
        "--allow-import",
        action="append",
        default=[],
        metavar="PACKAGE",
        help="use classes of this package, where the model names any; the package is imported. May be repeated",
    )
