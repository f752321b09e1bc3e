"""`python -m zigma_pl demo`: train on handwritten digits, sample, and classify the samples."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from zigma_pl.cli.commands.parser import Parser
from zigma_pl.core.ranges import check_whole_numbers
from zigma_pl.core.shipped import shipped_file

if TYPE_CHECKING:
    import numpy as np

    from zigma_pl.data.base import Split

EXPERIMENT = "experiments/digits.yaml"


def build_parser() -> argparse.ArgumentParser:
    """Describe the options."""
    parser = Parser(
        prog="python -m zigma_pl demo",
        description="Train ZigMa on scikit-learn's handwritten digits, sample, and print the fraction of samples that "
        "a support vector machine, trained on real digits, assigns to the requested class. Takes about two minutes on "
        "two CPU cores.",
    )
    parser.add_argument("--config", help=f"experiment to train (default: {EXPERIMENT})")
    parser.add_argument("--out", default="samples/demo", help="folder for the samples (default: %(default)s)")
    parser.add_argument("--num_samples", type=int, default=500, help="digits to sample (default: %(default)s)")
    parser.add_argument("--max_steps", type=int, help="training steps (default: those of the experiment)")
    return parser


def main(argv: list[str]) -> int:
    """Run the command; returns the exit status."""
    options = build_parser().parse_args(argv)
    import torch  # after parsing, so that --help answers at once

    check_whole_numbers("demo", num_samples=options.num_samples, max_steps=options.max_steps)
    torch.set_num_threads(1)  # more threads do not help so small a model, and are much slower if a core is busy
    config = options.config or str(shipped_file(EXPERIMENT))
    steps = [] if options.max_steps is None else [f"--trainer.max_steps={options.max_steps}"]
    if status := run("fit", "--config", config, *steps):
        return status
    count = f"--data.init_args.num_predict_samples={options.num_samples}"
    sampling = [count, "--data.init_args.batch_size=250", f"--samples.folder={options.out}"]
    if status := run("predict", "--config", config, "--ckpt_path", "last", *sampling):
        return status
    report(Path(options.out))
    return 0


def run(*arguments: str) -> int:
    """Print a command as the user would type it, run it in this process and return its status."""
    from zigma_pl.cli.lightning_cli import main as run_cli

    print("\n$ python -m zigma_pl " + " ".join(arguments), flush=True)
    return run_cli(list(arguments))


def report(folder: Path) -> None:
    """Print the fraction of the samples in `folder` that are recognised, and the path of the grid."""
    recognised, real_accuracy, num_samples = judge(folder)
    print(
        f"\n{recognised:.1%} of {num_samples} sampled digits are recognised as the requested class by a support\n"
        f"vector machine trained on real digits (of held-out real digits it recognises {real_accuracy:.1%})."
    )
    print(f"grid: {folder / 'grid.png'}")


def judge(folder: Path) -> tuple[float, float, int]:
    """Classify the samples that `predict` wrote.

    Returns: the fraction recognised as the requested class, the classifier's accuracy on held-out real digits, and the
    number of samples.
    """
    import numpy as np
    from PIL import Image
    from sklearn.svm import SVC

    train_images, train_labels = real_digits("train")
    test_images, test_labels = real_digits("test")
    classifier = SVC(gamma=0.001 * 16**2, C=10.0).fit(train_images, train_labels)
    rows = json.loads((folder / "samples.json").read_text())["samples"]
    opened = [Image.open(folder / row["file"], formats=["PNG"]) for row in rows]
    pictures = [np.asarray(picture, dtype=np.float64) / 255 for picture in opened]
    sampled = np.stack(pictures).reshape(len(rows), -1)
    requested = np.array([row["class_id"] for row in rows])
    recognised = float((classifier.predict(sampled) == requested).mean())
    return recognised, float(classifier.score(test_images, test_labels)), len(rows)


def real_digits(split: "Split") -> "tuple[np.ndarray, np.ndarray]":
    """Return the real digits of a split as rows (num_images, 64) in [0, 1], and their labels."""
    from zigma_pl.data.sources.digits import Digits

    images = Digits().load_split(split)
    return images.pixels.reshape(len(images), -1) / 255, images.labels
