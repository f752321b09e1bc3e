"""The Frechet distance between two Gaussians, as in FID (arXiv:1706.08500).

Axes: d features.
"""

import torch
from torch import Tensor

from zigma_pl.core.errors import UserError
from zigma_pl.evaluation.metrics.feature_sets import FeatureMetric
from zigma_pl.evaluation.metrics.statistics import FeatureStatistics


class FrechetDistance(FeatureMetric):
    """The Frechet distance between real and generated samples as a `torchmetrics.Metric`; FID with Inception features.

    The states are sums in float64, so memory does not grow with the number of samples. For arguments see
    `FeatureMetric`.
    """

    keeps = "statistics"

    def compute(self) -> Tensor:
        """Return the distance over the samples of all processes, a float64 scalar.

        Raises:
            UserError: there are fewer than 2 real or 2 generated samples, or a sample occurs twice.
        """
        self.check_ids()
        value = frechet_distance(self.statistics("real"), self.statistics("fake"))
        return torch.tensor(value, dtype=torch.float64, device=self.device)


def frechet_distance(one: FeatureStatistics, other: FeatureStatistics) -> float:
    """Return |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)) with means m and unbiased covariances C.

    With C1 = F1 F1^T and C2 = F2 F2^T, the trace of (C1 C2)^(1/2) is the sum of the singular values of F1^T F2: their
    squares are the eigenvalues of the symmetric matrix F1^T C2 F1, which are also the nonzero eigenvalues of C1 C2. So
    the result is real, and accurate even if there are fewer samples than features, unlike square roots of eigenvalues
    that should be zero.

    Raises:
        UserError: there are fewer than 2 samples, or the numbers of features differ.
    """
    if one.dim != other.dim:
        raise UserError(f"the Frechet distance needs equal numbers of features, got {one.dim} and {other.dim}")
    difference = one.mean - other.mean
    trace_of_root = torch.linalg.svdvals(factor(one.covariance).T @ factor(other.covariance)).sum()
    traces = one.covariance.trace() + other.covariance.trace()
    return float(difference @ difference + traces - 2 * trace_of_root)


def factor(matrix: Tensor) -> Tensor:
    """Return F (d, rank) with F F^T = matrix for a symmetric positive semi-definite matrix (d, d).

    Eigenvalues within rounding errors are treated as zero.
    """
    eigenvalues, vectors = torch.linalg.eigh(matrix)
    kept = eigenvalues > eigenvalues[-1] * len(matrix) * torch.finfo(matrix.dtype).eps
    return vectors[:, kept] * eigenvalues[kept].sqrt()
