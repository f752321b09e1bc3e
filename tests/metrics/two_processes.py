"""One of several processes: measures its part of the samples and writes what it then has."""

import torch
from metrics.measured import all_losses, all_metrics, error_of, measure
from torch import distributed

from zigma_pl.evaluation.features import ExtractedFeatures


def main(rank, world_size, folder):
    """Measure, and write results<rank>.pt to the folder."""
    distributed.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=world_size)
    # Every second sample; all samples on the first process, and the second without any, not even an empty batch.
    shares = {"halves": (rank, world_size), "all and nothing": (0, 1) if rank == 0 else None}
    results = {name: measure(all_metrics(), share) for name, share in shares.items()}
    results["loss"] = {name: all_losses(share) for name, share in shares.items()}
    twice, fewer = (ExtractedFeatures(1, number, keep=True) for number in (3, 4))
    twice.update(torch.zeros(2 - rank, 1), torch.arange(2 - rank))
    fewer.update(torch.zeros(1, 1), torch.tensor([rank]))
    results["errors"] = [error_of(twice.compute), error_of(fewer.compute)]
    torch.save(results, folder / f"results{rank}.pt")
