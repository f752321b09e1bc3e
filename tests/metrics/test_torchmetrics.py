"""The metrics in somebody's training loop, and beside torchmetrics' and torch-fidelity's own."""

import importlib.util
import math

import pytest
import torch
import torchmetrics.image.fid
import torchmetrics.image.kid
from metrics.pinned import features
from torch import nn
from torchmetrics import MetricCollection

from zigma_pl.core.errors import UserError
from zigma_pl.evaluation.loss_by_time import MeanByTime
from zigma_pl.evaluation.metrics.feature_sets import GivenFeatures
from zigma_pl.evaluation.metrics.frechet import FrechetDistance
from zigma_pl.evaluation.metrics.kernel_distance import KernelDistance
from zigma_pl.evaluation.metrics.precision_recall import PrecisionRecall

MAKERS = {
    "frechet": lambda: FrechetDistance(GivenFeatures(8)),
    "kernel": lambda: KernelDistance(GivenFeatures(8), num_subsets=4, subset_size=6),
    "shares": lambda: PrecisionRecall(GivenFeatures(8)),
}


def filled(metric, offset=0.0):
    real, fake = features("full rank")
    metric.update(real, real=True, sample_ids=torch.arange(60))
    metric.update(fake + offset, real=False, sample_ids=torch.arange(50))
    return metric


def plain(value):
    return {name: float(part) for name, part in value.items()} if isinstance(value, dict) else float(value)


@pytest.mark.parametrize("name", MAKERS)
def test_forward_adds_a_batch_and_reset_forgets_them(name):
    real, fake = features("full rank")
    expected, metric = plain(filled(MAKERS[name]()).compute()), MAKERS[name]()
    for _ in range(2):
        assert metric(real, real=True) is None
        for batch in (*fake.split(20), fake[:0]):
            metric(batch, real=False)
        assert plain(metric.compute()) == pytest.approx(expected, rel=1e-12)
        metric.reset()
    with pytest.raises(UserError):
        metric.compute()


@pytest.mark.parametrize("name", MAKERS)
def test_real_samples_can_outlive_a_reset(name):
    metric = MAKERS[name]()
    metric.reset_real = False
    expected = plain(filled(metric).compute())
    other = plain(filled(MAKERS[name](), offset=1.0).compute())
    fake = features("full rank")[1]
    for offset, value in ((1.0, other), (0.0, expected)):
        metric.reset()
        metric.update(fake + offset, real=False, sample_ids=torch.arange(50))
        assert plain(metric.compute()) == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize("name", MAKERS)
def test_states_are_saved_where_asked_for_and_survive_a_cast_of_the_module(name):
    module = nn.ModuleDict({"metric": filled(MAKERS[name]())})
    expected = plain(module["metric"].compute())
    assert not module.state_dict()
    module["metric"].persistent(True)
    module.to(torch.bfloat16).half()
    again = nn.ModuleDict({"metric": MAKERS[name]()})
    again["metric"].persistent(True)
    again.load_state_dict(module.state_dict())
    assert plain(again["metric"].compute()) == expected


@pytest.mark.parametrize("name", MAKERS)
def test_a_sample_that_is_there_twice_and_features_without_a_value_are_errors(name):
    metric = filled(MAKERS[name]())
    with pytest.raises(UserError, match="finite"):
        metric.update(torch.full((2, 8), math.nan), real=False)
    with pytest.raises(UserError, match="shape"):
        metric.update(torch.zeros(2, 7), real=False)
    with pytest.raises(UserError, match="sample_ids"):
        metric.update(torch.zeros(2, 8), real=False, sample_ids=torch.arange(3))
    metric.update(torch.zeros(2, 8), real=False, sample_ids=torch.tensor([50, 49]))
    with pytest.raises(UserError, match="sample 49 and 0 more occur twice"):
        metric.compute()


def test_an_empty_first_batch_does_not_join_metrics_of_different_features():
    collection = MetricCollection({"one": MAKERS["kernel"](), "other": KernelDistance(GivenFeatures(20), 4, 6)})
    collection["one"].update(torch.empty(0, 8), real=True)
    collection["other"].update(torch.empty(0, 20), real=True)
    assert not collection._equal_metric_states(collection["one"], collection["other"])


def test_the_loss_by_time_works_in_a_collection():
    losses, times = torch.tensor([1.0, 3.0, 8.0]), torch.tensor([0.0, 0.05, 0.95])
    collection = MetricCollection({"loss": MeanByTime()})
    assert collection(losses[:2], times[:2])["loss"].value == 2
    assert collection(losses[2:], times[2:])["loss"].num_samples == 1
    assert collection.compute()["loss"].value == 4
    metric = MeanByTime().to(torch.float16).half()
    metric.update(torch.tensor([2.0**24, 1.0]), torch.tensor([0.5, 0.5]))
    assert metric.compute().value == (2.0**24 + 1) / 2
    with pytest.raises(UserError, match=r"in \[0, 1\]"):
        metric.update(losses, times + 1)
    with pytest.raises(UserError, match="shape"):
        metric.update(losses, times[:2])


class Flat(nn.Module):
    """The pixels as features, as torchmetrics takes an extractor."""

    num_features = 8

    def forward(self, images):
        return images.flatten(1)


def images_like(part):
    return part[:, :, None, None]


def test_frechet_distance_is_that_of_torchmetrics():
    ours = filled(FrechetDistance(GivenFeatures(8)))
    theirs = torchmetrics.image.fid.FrechetInceptionDistance(Flat(), normalize=False, input_img_size=(8, 1, 1))
    theirs.used_custom_model = True
    theirs.set_dtype(torch.float64)
    for part, real in zip(features("full rank"), (True, False), strict=True):
        theirs.update(images_like(part.double()), real=real)
    assert float(ours.compute()) == pytest.approx(float(theirs.compute()), rel=1e-6)


def test_kernel_distance_is_that_of_torchmetrics():
    """Its subsets are of another random generator: with all samples in each, they are the same."""
    real, fake = (part[:50] for part in features("full rank"))
    ours = KernelDistance(GivenFeatures(8), num_subsets=2, subset_size=50)
    theirs = torchmetrics.image.kid.KernelInceptionDistance(Flat(), subsets=2, subset_size=50)
    for part, is_real in ((real, True), (fake, False)):
        ours.update(part, real=is_real)
        theirs.update(images_like(part), real=is_real)
    assert float(ours.compute()["kid"]) == pytest.approx(float(theirs.compute()[0]), rel=1e-4)


HAS_FIDELITY = importlib.util.find_spec("torch_fidelity") is not None


@pytest.mark.skipif(not HAS_FIDELITY, reason="torch_fidelity is not installed: pip install 'zigma_pl[fid]'")
def test_distances_are_those_of_torch_fidelity():
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    from torch_fidelity.metric_kid import kid_features_to_metric
    from torch_fidelity.metric_prc import prc_features_to_metric

    real, fake = (part[:50] for part in features("full rank"))
    metrics = [
        FrechetDistance(GivenFeatures(8)),
        KernelDistance(GivenFeatures(8), 2, 50),
        PrecisionRecall(GivenFeatures(8)),
    ]
    for metric in metrics:
        metric.update(real, real=True)
        metric.update(fake, real=False)
    frechet, kernel, shares = (metric.compute() for metric in metrics)
    statistics = [fid_features_to_statistics(part) for part in (real, fake)]
    theirs = fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    assert float(frechet) == pytest.approx(theirs, rel=1e-6)
    theirs = kid_features_to_metric(fake, real, kid_subsets=2, kid_subset_size=50, verbose=False)
    assert float(kernel["kid"]) == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-5)
    theirs = prc_features_to_metric(fake, real, prc_neighborhood=3, verbose=False)
    assert float(shares["precision"]) == pytest.approx(theirs["precision"], rel=1e-6)
    assert float(shares["recall"]) == pytest.approx(theirs["recall"], rel=1e-6)
