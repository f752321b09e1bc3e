"""Print the scores of result records, the lowest velocity loss first: python tools/device/scores.py results"""

import argparse
from pathlib import Path

from zigma_pl.suite.report.results import RecordFile, load_results
from zigma_pl.suite.report.scores import in_order

LOSS = "velocity_loss"


def line(result: RecordFile) -> str:
    """Return the name, the scores, and the length of the training."""
    names = in_order(list(result.record.scores))
    scores = " ".join(f"{name}={result.record.scores[name].value:.5g}" for name in names)
    training = result.record.training
    return (
        f"{result.record.scale} {result.record.row}: {scores} samples={result.samples_seen} "
        f"seconds={training.get('seconds')} parameters={training.get('parameters')}"
    )


def main() -> None:
    """Print a line for each record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    results = load_results(parser.parse_args().folder)
    for result in sorted(results, key=lambda found: found.value(LOSS) or float("inf")):
        print(line(result))


if __name__ == "__main__":
    main()
