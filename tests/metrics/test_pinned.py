"""Scores of fixed features are those of the code before the metrics became `torchmetrics.Metric`s."""

import pytest
import torch
from metrics.pinned import CASES, features, losses
from torchmetrics import MetricCollection

from zigma_pl.evaluation.loss_by_time import MeanByTime
from zigma_pl.evaluation.metrics.feature_sets import GivenFeatures
from zigma_pl.evaluation.metrics.frechet import FrechetDistance, frechet_distance
from zigma_pl.evaluation.metrics.kernel_distance import KernelDistance, kernel_distance
from zigma_pl.evaluation.metrics.precision_recall import PrecisionRecall, precision_recall
from zigma_pl.evaluation.metrics.statistics import FeatureStatistics

# Frechet distance; kernel distance over 4 subsets of 6 with seed 0, mean and std, and with seed 3; precision and recall
# with 3 neighbours.
EXPECTED = {
    "full rank": (
        5.389326377394715,
        (25.882394187044206, 14.30183091349982),
        (10.894061732248147, 4.578298107694777),
        (1.0, 0.08333333333333333),
    ),
    "fewer samples than features": (
        30.327146383676393,
        (13.315434344574658, 3.7996523396369972),
        (15.094713009718498, 2.6672130353977264),
        (1.0, 0.0),
    ),
    "far from zero": (
        7.042913361715417,
        (275911420411904.0, 131770664886216.75),
        (253897745104896.0, 102770239783311.67),
        (1.0, 0.016666666666666666),
    ),
    "more real than features, fewer generated": (
        24.717773749167417,
        (26.7871833531212, 9.073573409512488),
        (31.153520117742417, 9.640685910885196),
        (1.0, 0.025),
    ),
}
LOSS = 0.5709716796875
LOSS_BY_TIME = [
    0.4357244318181818,
    0.6892578125,
    0.5491536458333334,
    0.66796875,
    None,
    0.67041015625,
    0.6234375,
    0.5087890625,
    0.482421875,
    0.7062174479166666,
]
SUBSETS = {"num_subsets": 4, "subset_size": 6}
close = {"rel": 1e-10, "abs": 0}


@pytest.mark.parametrize("name", CASES)
def test_functions_give_the_older_values(name):
    real, fake = features(name)
    frechet, kernel, kernel_seeded, shares = EXPECTED[name]
    one, other = (FeatureStatistics(real.shape[1]).update(part) for part in (real, fake))
    assert frechet_distance(one, other) == pytest.approx(frechet, **close)
    assert kernel_distance(real, fake, **SUBSETS) == pytest.approx(kernel, **close)
    assert kernel_distance(real, fake, **SUBSETS, seed=3) == pytest.approx(kernel_seeded, **close)
    assert precision_recall(real, fake) == pytest.approx(shares, **close)


@pytest.mark.parametrize("name", CASES)
def test_a_collection_of_metrics_gives_the_older_values_in_any_order_of_batches(name):
    real, fake = features(name)
    frechet, kernel, _, (precision, recall) = EXPECTED[name]
    given = GivenFeatures(real.shape[1])
    collection = MetricCollection(
        {
            "frechet": FrechetDistance(given),
            "kernel": KernelDistance(given, **SUBSETS),
            "shares": PrecisionRecall(given),
        }
    )
    for part, is_real in ((fake, False), (real, True)):
        for ids in reversed(torch.arange(len(part)).split(9)):
            collection.update(part[ids], real=is_real, sample_ids=ids)
    values = collection.compute()
    assert values["frechet"].dtype == torch.float64
    expected = {"frechet": frechet, "kid": kernel[0], "kid_std": kernel[1], "precision": precision, "recall": recall}
    assert {key: float(value) for key, value in values.items()} == pytest.approx(expected, **close)


def test_losses_by_time_give_the_older_values():
    metric, (values, times) = MeanByTime(), losses()
    metric.update(values[:17], times[:17])
    metric.update(values[17:], times[17:])
    loss = metric.compute()
    assert loss.value == pytest.approx(LOSS, **close)
    assert loss.by_time == [None if part is None else pytest.approx(part, **close) for part in LOSS_BY_TIME]
    assert loss.num_samples == 40
