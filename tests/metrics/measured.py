"""What one process of several measures; of one process, everything."""

import torch
from metrics.pinned import features, losses
from torchmetrics import MetricCollection

from zigma_pl.core.errors import UserError
from zigma_pl.evaluation.features import ExtractedFeatures
from zigma_pl.evaluation.loss_by_time import MeanByTime
from zigma_pl.evaluation.metrics.clip_score import ClipScore
from zigma_pl.evaluation.metrics.feature_sets import GivenFeatures
from zigma_pl.evaluation.metrics.frechet import FrechetDistance
from zigma_pl.evaluation.metrics.kernel_distance import KernelDistance
from zigma_pl.evaluation.metrics.precision_recall import PrecisionRecall

CASES = ("far from zero", "fewer samples than features")


class LetterScore(ClipScore):
    """The number of letters of the captions, without networks."""

    def load(self, weights):
        pass

    def scores(self, pictures, captions):
        return torch.tensor([float(len(caption)) for caption in captions])


def all_metrics():
    """Return a collection of metrics for each case."""
    return {
        case: MetricCollection(
            {
                "frechet": FrechetDistance(GivenFeatures(features(case)[0].shape[1])),
                "kernel": KernelDistance(GivenFeatures(features(case)[0].shape[1]), num_subsets=4, subset_size=6),
                "shares": PrecisionRecall(GivenFeatures(features(case)[0].shape[1])),
                "clip_score": LetterScore(),
            }
        )
        for case in CASES
    }


def measure(collections, share):
    """Return the values on the samples of a share, (rank, world size) or None for no sample at all; computed twice."""
    results = {}
    for case, collection in collections.items():
        for part, real in zip(features(case), (True, False), strict=True):
            for ids in [] if share is None else torch.arange(len(part))[share[0] :: share[1]].flip(0).split(7):
                captions = ["a" * int(number) for number in ids]
                given = {"images": part[ids], "real": real, "sample_ids": ids}
                collection.update(**given, pictures=part[ids], captions=captions) if not real else [
                    collection[name].update(**given) for name in ("frechet", "kernel", "shares")
                ]
        for name in (case, f"{case}, again"):
            results[name] = {key: float(value) for key, value in collection.compute().items()}
        results[f"{case}, extracted"] = extracted(part, share)
    return results


def extracted(part, share):
    """Return mean and covariance of a set of features, and the features in order of the samples."""
    gathered = ExtractedFeatures(part.shape[1], len(part), keep=True)
    if share is not None:
        ids = torch.arange(len(part))[share[0] :: share[1]].flip(0)
        gathered.update(part[ids], ids)
    statistics, kept = gathered.compute()
    return {"mean": statistics.mean, "covariance": statistics.covariance, "features": kept}


def all_losses(share):
    """Return the loss by time of a share."""
    metric = MeanByTime()
    if share is not None:
        metric.update(*(part[share[0] :: share[1]] for part in losses()))
    loss = metric.compute()
    return [loss.value, *[-1 if part is None else part for part in loss.by_time], loss.num_samples]


def error_of(compute):
    """Return the message of the UserError."""
    try:
        compute()
    except UserError as error:
        return str(error)
    return "no error"
