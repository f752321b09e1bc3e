"""Measure the samples per second of a data module, loader and frozen encoders together, without a model.

python tools/loading.py --config experiments/table1_zigzag8.yaml --data.cache data/mm-celeba-hq-256
"""

import sys
import time

from tqdm import tqdm

from zigma_pl.cli.commands.show_batch import read_configuration

SECONDS = 10.0


def main() -> None:
    """Print the samples per second of the training batches, after the first three batches."""
    data = read_configuration(sys.argv[1:]).datamodule
    data.setup("fit")
    batches = iter(data.train_dataloader())
    for _ in range(3):
        data.on_after_batch_transfer(next(batches), 0)
    started, num_samples = time.perf_counter(), 0
    with tqdm(unit="samples", desc=type(data).__name__) as bar:
        while (seconds := time.perf_counter() - started) < SECONDS:
            data.on_after_batch_transfer(next(batches), 0)
            num_samples += data.batch_size
            bar.update(data.batch_size)
    print(f"{num_samples / seconds:.0f} samples/s: batches of {data.batch_size}, {data.num_workers} workers")


if __name__ == "__main__":
    main()
