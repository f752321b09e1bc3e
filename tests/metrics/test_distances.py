import math

import numpy as np
import pytest
import torch

from zigma_pl.core.errors import UserError
from zigma_pl.evaluation.metrics.frechet import frechet_distance
from zigma_pl.evaluation.metrics.kernel_distance import kernel_distance, unbiased_mmd
from zigma_pl.evaluation.metrics.precision_recall import precision_recall
from zigma_pl.evaluation.metrics.statistics import FeatureStatistics


def gaussian(num_samples, dim, seed, shift=0.0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(dim, dim, generator=generator, dtype=torch.float64)
    return shift + scale * torch.randn(num_samples, dim, generator=generator, dtype=torch.float64) @ mixing


def statistics(features, batch_size=7):
    result = FeatureStatistics(features.shape[1])
    for batch in features.split(batch_size):
        result.update(batch)
    return result


def test_statistics_are_those_of_numpy_even_far_from_zero():
    features = gaussian(100, 6, seed=0, shift=1e6)
    streamed = statistics(features)
    np.testing.assert_allclose(streamed.mean, features.numpy().mean(0), rtol=1e-13)
    np.testing.assert_allclose(streamed.covariance, np.cov(features.numpy(), rowvar=False), rtol=1e-8)


def test_merged_streams_are_one_stream():
    features = gaussian(50, 5, seed=1, shift=3)
    whole = statistics(features)
    for cut in (0, 1, 20, 50):
        merged = statistics(features[:cut]).merge(statistics(features[cut:]))
        assert merged.count == 50
        torch.testing.assert_close(merged.mean, whole.mean, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(merged.covariance, whole.covariance, rtol=1e-12, atol=1e-12)


def test_frechet_distance_of_commuting_gaussians_has_a_closed_form():
    # With diagonal covariances it is |m1 - m2|^2 + sum (s1 - s2)^2; the samples are made to have exactly those.
    corners = torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]], dtype=torch.float64) * math.sqrt(3 / 4)
    one, other = statistics(corners * torch.tensor([2.0, 5.0])), statistics(corners * torch.tensor([3.0, 1.0]) + 4)
    assert frechet_distance(one, other) == pytest.approx(2 * 16 + 1 + 16, rel=1e-12)
    assert frechet_distance(one, one) == pytest.approx(0, abs=1e-10)


@pytest.mark.parametrize("num_samples", [200, 20])  # 20 samples of 30 features: the covariances have no full rank
def test_frechet_distance_is_that_of_scipy(num_samples):
    from scipy.linalg import sqrtm

    real, fake = gaussian(num_samples, 30, seed=2), gaussian(num_samples, 30, seed=3, shift=0.5)
    one, other = np.cov(real.numpy(), rowvar=False), np.cov(fake.numpy(), rowvar=False)
    # tr (C1 C2)^(1/2) is the sum of the singular values of X1 X2^T / (n - 1), whatever the rank.
    product = (real - real.mean(0)) @ (fake - fake.mean(0)).T / (num_samples - 1)
    trace_of_root = float(torch.linalg.svdvals(product).sum())
    if num_samples > 30:  # scipy's root of a singular matrix is inexact
        assert np.trace(sqrtm(one @ other).real) == pytest.approx(trace_of_root, rel=1e-9)
    difference = (real.mean(0) - fake.mean(0)).numpy()
    expected = difference @ difference + np.trace(one) + np.trace(other) - 2 * trace_of_root
    assert frechet_distance(statistics(real), statistics(fake)) == pytest.approx(expected, rel=1e-10)


def test_frechet_distance_of_few_samples_to_themselves_is_zero():
    few = statistics(gaussian(20, 200, seed=10, scale=30))  # 181 of 200 eigenvalues are zero but for rounding
    assert frechet_distance(few, few) == pytest.approx(0, abs=1e-12 * float(few.covariance.trace()))


def test_mmd_is_its_definition():
    x, y = gaussian(6, 3, seed=4), gaussian(6, 3, seed=5)

    def kernel(a, b):
        return (float(a @ b) / 3 + 1) ** 3

    pairs = [(i, j) for i in range(6) for j in range(6)]
    expected = sum(kernel(x[i], x[j]) + kernel(y[i], y[j]) for i, j in pairs if i != j) / 30
    expected -= 2 * sum(kernel(x[i], y[j]) for i, j in pairs) / 36
    assert float(unbiased_mmd(x, y)) == pytest.approx(expected, rel=1e-12)


def test_kernel_distance_is_near_zero_for_equals_and_seeded():
    real, fake, shifted = (
        gaussian(400, 4, seed=6),
        gaussian(400, 4, seed=6)[torch.randperm(400)],
        gaussian(400, 4, 6, 5),
    )
    options = {"num_subsets": 20, "subset_size": 100}
    equal, different = kernel_distance(real, fake, **options), kernel_distance(real, shifted, **options)
    assert abs(equal.mean) < 2 * equal.std
    assert different.mean > 10 * abs(equal.mean)
    assert kernel_distance(real, shifted, **options) == different
    assert kernel_distance(real, shifted, **options, seed=1) != different
    whole = kernel_distance(real, shifted, num_subsets=3, subset_size=400)
    assert whole.mean == pytest.approx(float(unbiased_mmd(real, shifted)), rel=1e-9)
    assert whole.std == pytest.approx(0, abs=1e-9)


def test_precision_and_recall_on_a_line():
    real = torch.arange(10.0)[:, None]  # with one neighbour, balls of radius 1: the manifold is [-1, 10]
    fake = torch.tensor([[0.5], [0.6], [4.2], [10.5], [30.0]])
    # Radii of the generated ones: 0.1, 0.1, 3.6, 6.3, 19.5; real points inside: 1 to 9 by the balls at 4.2 and 10.5,
    # and nothing reaches 0 but the ball at 0.5 of radius 0.1, which does not.
    precision, recall = precision_recall(real, fake, num_neighbours=1)
    assert precision == pytest.approx(3 / 5)
    assert recall == pytest.approx(9 / 10)


def test_precision_and_recall_by_brute_force():
    real, fake = gaussian(60, 3, seed=7), gaussian(50, 3, seed=8, shift=1)

    def share(samples, members):
        own = np.linalg.norm(members[:, None] - members[None], axis=-1)
        radius = np.sort(own, axis=1)[:, 3]
        other = np.linalg.norm(samples[:, None] - members[None], axis=-1)
        return (other <= radius).any(1).mean()

    result = precision_recall(real, fake)
    assert result.precision == pytest.approx(share(fake.numpy(), real.numpy()))
    assert result.recall == pytest.approx(share(real.numpy(), fake.numpy()))


def test_too_few_samples_are_refused():
    few = gaussian(3, 2, seed=9)
    with pytest.raises(UserError, match="subset_size"):
        kernel_distance(few, few)
    with pytest.raises(UserError, match="neighbours"):
        precision_recall(few, few)
    with pytest.raises(UserError, match="at least 2"):
        frechet_distance(statistics(few[:1]), statistics(few))
    with pytest.raises(UserError, match="finite"):
        FeatureStatistics(2).update(torch.tensor([[1.0, math.nan]]))
    with pytest.raises(UserError, match="shape"):
        FeatureStatistics(2).update(torch.zeros(4, 3))
