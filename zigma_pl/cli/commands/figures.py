"""The option and the saving of the commands that write a figure."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from zigma_pl.core.errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, MUTED, FAINT = "#26263a", "#6b6b80", "#d9d9e3"


def add_out(parser: argparse.ArgumentParser, default: str) -> None:
    """Add `--out`, the file of the figure."""
    parser.add_argument(
        "--out",
        type=Path,
        default=Path(default),
        metavar="FILE",
        help=f"image to write, .png, .pdf or .svg; its folder is created if missing (default: {default})",
    )


def check_format(out: Path) -> None:
    """Raise UserError unless the name of the file ends in a known image format."""
    if out.suffix.lower() not in (".png", ".pdf", ".svg"):
        raise UserError(f"--out {out}: the name must end in .png, .pdf or .svg")


def save(figure: "Figure", out: Path) -> None:
    """Write a figure.

    Raises:
        UserError: the file cannot be written.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(out)
    except OSError as error:
        raise UserError(f"--out {out}: cannot be written ({error.strerror}): choose another path") from error
