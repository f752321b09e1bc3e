"""One of several processes: reduces its part of the samples and writes what it then has.

Usage: two_processes.py RANK WORLD_SIZE FOLDER
"""

import sys
from pathlib import Path

import torch
from torch import distributed

from zigma_pl.errors import UserError
from zigma_pl.metrics.gather import check_sample_ids, gather_features
from zigma_pl.metrics.statistics import FeatureStatistics


def main(rank, world_size, folder):
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=world_size)
    features = torch.load(folder / "features.pt", weights_only=True)
    ids = torch.arange(len(features))[rank::world_size].flip(0)
    FeatureStatistics(features.shape[1]).update(features[ids]).all_reduce().save(folder / f"statistics{rank}.npz")
    torch.save(gather_features(ids, features[ids], len(features)), folder / f"gathered{rank}.pt")
    messages = [error_of(ids, len(features) + 1), error_of([*ids.tolist(), 0], len(features) + world_size)]
    (folder / f"messages{rank}.txt").write_text("\n".join(messages))
    # A process without samples, as where there are fewer samples than processes.
    nothing = FeatureStatistics(features.shape[1])
    (nothing if rank else nothing.update(features)).all_reduce().save(folder / f"uneven{rank}.npz")
    # Without these, the threads of gloo can outlive the interpreter, which then aborts.
    distributed.barrier()
    distributed.destroy_process_group()


def error_of(ids, num_samples):
    try:
        check_sample_ids(ids, num_samples)
    except UserError as error:
        return str(error)
    return "no error"


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
