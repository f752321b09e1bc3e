"""`python -m zigma_pl average`: reconstruct an average of the weights of any width from a run's snapshots."""

import argparse
from pathlib import Path

from zigma_pl.cli.commands.parser import Parser


def build_parser() -> argparse.ArgumentParser:
    """Describe the options."""
    parser = Parser(
        prog="python -m zigma_pl average",
        description="Reconstruct an average of the weights from the snapshots that a run with "
        "--ema.snapshot_every_n_steps has written (post-hoc EMA, arXiv:2312.02696). The checkpoint holds the average "
        "and no training state; `export`, `test` and `fit --init_from` take it like any other.",
    )
    parser.add_argument("run", type=Path, metavar="RUN_FOLDER", help="log folder of the run, with snapshots/")
    parser.add_argument(
        "--sigma_rel",
        required=True,
        type=float,
        help="width of the average: standard deviation of its weighting over the steps, relative to their number; "
        "between about 0.03 and 0.2",
    )
    parser.add_argument("--step", type=int, help="step of a snapshot at which the average ends (default: the last)")
    parser.add_argument("--out", required=True, type=Path, help="checkpoint to write (.ckpt)")
    return parser


def main(argv: list[str]) -> int:
    """Run the command; returns the exit status."""
    options = build_parser().parse_args(argv)
    from zigma_pl.core.errors import UserError
    from zigma_pl.training.checkpoints.io import WholeFileIO
    from zigma_pl.training.checkpoints.newest import CHECKPOINT_FOLDER
    from zigma_pl.training.checkpoints.snapshots import reconstruct

    out: Path = options.out
    if out.suffix != ".ckpt":
        raise UserError(f"--out {out}: the name must end in .ckpt")
    if out.parent.name == CHECKPOINT_FOLDER:
        raise UserError(f"--out {out}: choose another folder, as `fit --ckpt_path last` would resume from this file")
    content, error = reconstruct(options.run, options.sigma_rel, options.step)
    WholeFileIO().save_checkpoint(content, out)
    print(f"wrote {out}: sigma_rel {options.sigma_rel:g}, step {content['global_step']}, profile error {error:.2%}")
    return 0
