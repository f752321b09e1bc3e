"""`python -m zigma_pl show-batch`: plot a batch as the model gets it, decoded, with class or caption of each sample."""

import textwrap
from argparse import SUPPRESS
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch.cli import LightningArgumentParser

from zigma_pl.cli.lightning_cli import ZigmaCLI
from zigma_pl.cli.parsing import parser_of, run_cli
from zigma_pl.core.errors import UserError
from zigma_pl.core.ranges import check_whole_numbers
from zigma_pl.data.base import ImageDataModule
from zigma_pl.data.from_options import make_data_module
from zigma_pl.data.labels import labels_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

CELL_INCH = 1.9
NUM_COLUMNS = 6
FRAMES_SHOWN = 8
MAX_SAMPLES = 1000  # a larger figure could not be opened


class DataCLI(ZigmaCLI):
    """Reads the same configs as `fit`, and builds only the data module."""

    datamodule: ImageDataModule

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the options of this command."""
        super().add_arguments_to_parser(parser)
        parser.add_argument("--out", type=Path, default=Path("batch.png"), help="image to write (.png)")
        parser.add_argument("--num_samples", type=int, default=12, help="samples to show")
        for option in ("--ckpt_path", "--weights_only"):  # keys of the config.yaml that `fit` writes; ignored
            parser.add_argument(option, default=None, help=SUPPRESS)
        parser.add_argument("--split", type=str, default="train", help="train, validation or test")

    def _parse_ckpt_path(self) -> None:
        """Ignore the checkpoint."""

    def before_instantiate_classes(self) -> None:
        """Fill in nothing and add no callbacks."""

    def instantiate_classes(self) -> None:
        """Build only the data module."""
        self.datamodule = make_data_module(self.config.data)


def main(argv: list[str]) -> int:
    """Run `python -m zigma_pl show-batch --config FILE --out PNG`; returns the exit status."""
    cli = read_configuration(argv)
    out, num_samples, split = cli.config.out, cli.config.num_samples, cli.config.split
    check_whole_numbers("show-batch", most=MAX_SAMPLES, num_samples=num_samples)
    if out.suffix.lower() != ".png":
        raise UserError(f"--out {out}: the name must end in .png")
    out.parent.mkdir(parents=True, exist_ok=True)
    draw_batch(cli.datamodule, split, num_samples).savefig(out)
    print(out)
    return 0


def read_configuration(argv: list[str]) -> DataCLI:
    """Parse the options and build the data module that they describe."""
    parser = parser_of(
        "show-batch",
        "Plot a batch of a config's data set as the model gets it, with class or caption of each sample.",
        "--config FILE.yaml --out batch.png [options]",
    )
    return run_cli(DataCLI, "show-batch", argv, {"prog": "python -m zigma_pl show-batch", **parser}, run=False)


def draw_batch(datamodule: ImageDataModule, split: str, num_samples: int) -> "Figure":
    """Return a figure of the first samples of a split; those for training are mirrored and captioned as in training.

    Raises:
        UserError: the split is unknown or cannot be opened.
    """
    loaders: dict[str, Any] = {
        "train": ("fit", datamodule.train_dataloader),
        "validation": ("validate", datamodule.val_dataloader),
        "test": ("test", datamodule.test_dataloader),
    }
    if split not in loaders:
        raise UserError(f"--split {split}: unknown split: choose train, validation or test")
    stage, loader = loaders[split]
    datamodule.batch_size = num_samples
    datamodule.setup(stage)
    raw = next(iter(loader()))
    latents = datamodule.on_after_batch_transfer(raw, 0).latents
    assert latents is not None
    name = type(datamodule).__name__ + (", synthetic" if getattr(datamodule, "synthetic", False) else "")
    title = f"{name}, {split}: latents {tuple(latents.shape[1:])}"
    labels = [textwrap.fill(textwrap.shorten(label, 120), 30) for label in labels_of(raw, datamodule.class_names)]
    return _figure(title, datamodule.decode(latents), labels)


def _figure(title: str, pictures: "Tensor", labels: list[str]) -> "Figure":
    """Plot images (B, C, height, width) in [0, 1] as a grid, or clips (B, F, 3, height, width) as one row each."""
    from matplotlib.figure import Figure

    clips = pictures.ndim == 5
    num_columns = min(FRAMES_SHOWN, pictures.shape[1]) if clips else min(NUM_COLUMNS, len(pictures))
    num_rows = len(pictures) if clips else -(-len(pictures) // num_columns)
    label_height = 0.15 * max(label.count("\n") + 1 for label in labels) + 0.1
    height = num_rows * (CELL_INCH + label_height) + 0.4
    figure = Figure(figsize=(num_columns * CELL_INCH, height), dpi=120, facecolor="white")
    figure.suptitle(title, fontsize=10, y=1 - 0.1 / height, va="top")
    space = label_height / CELL_INCH
    figure.subplots_adjust(0.01, label_height / height, 0.99, 1 - 0.4 / height, wspace=0.04, hspace=space)
    axes = figure.subplots(num_rows, num_columns, squeeze=False)
    for ax in axes.flat:
        ax.axis("off")
    shown = _some_frames(pictures, num_columns) if clips else pictures
    for ax, picture in zip(axes.flat, shown, strict=False):
        ax.imshow(picture.permute(1, 2, 0).numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    for ax, label in zip(axes[:, 0] if clips else axes.flat, labels, strict=False):
        ax.text(0.5, -0.03, label, fontsize=7, ha="center", va="top", transform=ax.transAxes)
    return figure


def _some_frames(clips: "Tensor", num_frames: int) -> "Tensor":
    """Return evenly spaced frames of each clip, the first and last included, as (B * num_frames, 3, ...)."""
    chosen = [round(index * (clips.shape[1] - 1) / max(1, num_frames - 1)) for index in range(num_frames)]
    return clips[:, chosen].flatten(0, 1)
