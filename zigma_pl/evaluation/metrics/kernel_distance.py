"""The kernel inception distance, KID (arXiv:1801.01401, section 4): squared maximum mean discrepancy over subsets.

Axes: n real samples, m generated samples, d features.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from zigma_pl.core.errors import UserError
from zigma_pl.core.ranges import LARGEST_SEED, check_whole_numbers
from zigma_pl.evaluation.metrics.feature_sets import Extractor, FeatureMetric


class SubsetValues(NamedTuple):
    """Mean and standard deviation over the subsets."""

    mean: float
    std: float


class KernelDistance(FeatureMetric):
    """The kernel distance between real and generated samples as a `torchmetrics.Metric`; KID with Inception features.

    The states are the features of all samples.

    Args:
        extractor: see `FeatureMetric`.
        num_subsets, subset_size, seed: see `kernel_distance`.
        options: options of `FeatureMetric`.
    """

    keeps = "features"

    def __init__(
        self, extractor: Extractor, num_subsets: int = 100, subset_size: int = 1000, seed: int = 0, **options: Any
    ) -> None:
        check_whole_numbers("KernelDistance", num_subsets=num_subsets)
        check_whole_numbers("KernelDistance", least=2, subset_size=subset_size)
        check_whole_numbers("KernelDistance", least=0, most=LARGEST_SEED, seed=seed)
        super().__init__(extractor, **options)
        self.num_subsets = num_subsets
        self.subset_size = subset_size
        self.seed = seed

    def compute(self) -> dict[str, Tensor]:
        """Return `kid` and `kid_std` over the samples of all processes, float64 scalars.

        Raises:
            UserError: there are fewer samples than a subset needs, or a sample occurs twice.
        """
        self.check_ids()
        real, fake = self.features("real"), self.features("fake")
        mean, std = kernel_distance(real, fake, self.num_subsets, self.subset_size, self.seed)
        return {
            name: torch.tensor(value, dtype=torch.float64, device=self.device)
            for name, value in (("kid", mean), ("kid_std", std))
        }


def kernel_distance(
    real: Tensor, fake: Tensor, num_subsets: int = 100, subset_size: int = 1000, seed: int = 0
) -> SubsetValues:
    """Return KID with the kernel k(x, y) = (x . y / d + 1)^3 and the unbiased estimator in each subset.

    Args:
        real: (n, d) features.
        fake: (m, d) features.
        num_subsets: number of independent pairs of subsets, each drawn without replacement.
        subset_size: number of real and of generated samples in a subset.
        seed: seed of the subsets.

    Raises:
        UserError: there are fewer samples than a subset needs, or num_subsets is less than 1.
    """
    if num_subsets < 1:
        raise UserError(f"KID: num_subsets must be at least 1, got {num_subsets}")
    fewest = min(len(real), len(fake))
    if not 2 <= subset_size <= fewest:
        raise UserError(f"KID: subset_size must be from 2 to the number of samples, {fewest}, got {subset_size}")
    generator = torch.Generator().manual_seed(seed)
    values = torch.empty(num_subsets, dtype=torch.float64)
    for subset in range(num_subsets):
        x = real[torch.randperm(len(real), generator=generator)[:subset_size]].double()
        y = fake[torch.randperm(len(fake), generator=generator)[:subset_size]].double()
        values[subset] = unbiased_mmd(x, y)
    return SubsetValues(float(values.mean()), float(values.std(correction=0)))


def unbiased_mmd(x: Tensor, y: Tensor) -> Tensor:
    """Return the unbiased estimate of the squared MMD of x (n, d) and y (n, d) with the polynomial kernel."""

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.T / a.shape[1] + 1) ** 3

    num_pairs = len(x) * (len(x) - 1)
    within_x, within_y = kernel(x, x), kernel(y, y)
    within = within_x.sum() - within_x.trace() + within_y.sum() - within_y.trace()
    return within / num_pairs - 2 * kernel(x, y).mean()
