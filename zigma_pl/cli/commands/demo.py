"""`python -m zigma_pl demo`: train on the handwritten digits, sample, and let a classifier judge the samples."""

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
        description="Train ZigMa on scikit-learn's handwritten digits, sample as many as asked for, print the share "
        "that a support vector machine trained on the real digits recognises as the class asked for, and name the "
        "picture. About five minutes on two CPU cores.",
    )
    parser.add_argument("--config", help=f"row to train (default: {EXPERIMENT} as shipped)")
    parser.add_argument("--out", default="samples/demo", help="folder for the samples (default: %(default)s)")
    parser.add_argument("--num-samples", type=int, default=500, help="digits to sample (default: %(default)s)")
    parser.add_argument("--max-steps", type=int, help="train for fewer or more steps than the row says")
    return parser


def main(argv: list[str]) -> int:
    """Run the command; returns the exit status."""
    options = build_parser().parse_args(argv)
    import torch  # after parsing, so that --help answers at once

    check_whole_numbers("demo", num_samples=options.num_samples, max_steps=options.max_steps)
    torch.set_num_threads(1)  # a model this small gains nothing from more, and loses much where a core is busy
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
    """Run one of the trainer's commands in this process, showing it as the user would type it; returns its status."""
    from zigma_pl.cli.lightning_cli import main as run_cli

    print("\n$ python -m zigma_pl " + " ".join(arguments), flush=True)
    return run_cli(list(arguments))


def report(folder: Path) -> None:
    """Print how many of the samples in `folder` are recognised, and where the grid is."""
    recognised, real_accuracy, num_samples = judge(folder)
    print(
        f"\n{recognised:.1%} of {num_samples} sampled digits are recognised as the class asked for, by a support\n"
        f"vector machine trained on the real training digits ({real_accuracy:.1%} of the held-out real ones are)."
    )
    print(f"grid, ten of each class: {folder / 'grid.png'}")


def judge(folder: Path) -> tuple[float, float, int]:
    """Classify the samples that `predict` wrote.

    Returns: the share recognised as the class asked for, the classifier's accuracy on held-out real digits, and how
    many samples there are.
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
    asked_for = np.array([row["class_id"] for row in rows])
    recognised = float((classifier.predict(sampled) == asked_for).mean())
    return recognised, float(classifier.score(test_images, test_labels)), len(rows)


def real_digits(split: "Split") -> "tuple[np.ndarray, np.ndarray]":
    """Return the real digits of a split as rows (num_images, 64) in [0, 1], and their labels."""
    from zigma_pl.data.sources.digits import Digits

    images = Digits().load_split(split)
    return images.pixels.reshape(len(images), -1) / 255, images.labels
