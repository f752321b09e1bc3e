"""The Frechet distance between two Gaussians, as in FID (arXiv:1706.08500).

Axes: d features.
"""

import torch
from torch import Tensor

from zigma_pl.metrics.statistics import FeatureStatistics


def frechet_distance(one: FeatureStatistics, other: FeatureStatistics) -> float:
    """Return |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)) of the means and unbiased covariances.

    The trace of the root is the sum of the square roots of the eigenvalues of C1^(1/2) C2 C1^(1/2), which is symmetric
    and positive semi-definite, so the result is real, also where there are fewer samples than features.
    """
    difference = one.mean - other.mean
    root = matrix_root(one.covariance)
    eigenvalues = torch.linalg.eigvalsh(root @ other.covariance @ root)
    trace_of_root = eigenvalues.clamp(min=0).sqrt().sum()
    traces = one.covariance.trace() + other.covariance.trace()
    return float(difference @ difference + traces - 2 * trace_of_root)


def matrix_root(matrix: Tensor) -> Tensor:
    """Return the symmetric root of a symmetric positive semi-definite (d, d) matrix."""
    eigenvalues, vectors = torch.linalg.eigh(matrix)
    return (vectors * eigenvalues.clamp(min=0).sqrt()) @ vectors.T
