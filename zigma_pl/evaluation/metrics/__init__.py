"""Metrics of generated images and clips, as `torchmetrics.Metric`s on features of frozen networks."""

from zigma_pl.evaluation.metrics.clip_score import ClipScore
from zigma_pl.evaluation.metrics.extractors import FeatureExtractor, build_extractor
from zigma_pl.evaluation.metrics.feature_sets import GivenFeatures
from zigma_pl.evaluation.metrics.frechet import FrechetDistance
from zigma_pl.evaluation.metrics.kernel_distance import KernelDistance
from zigma_pl.evaluation.metrics.precision_recall import PrecisionRecall

__all__ = [
    "ClipScore",
    "FeatureExtractor",
    "FrechetDistance",
    "GivenFeatures",
    "KernelDistance",
    "PrecisionRecall",
    "build_extractor",
]
