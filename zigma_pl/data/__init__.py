"""Data modules, and the classes for writing your own."""

from zigma_pl.core.batch import Batch, RawBatch
from zigma_pl.data.base import ImageDataModule
from zigma_pl.data.images import ImageDataset, ImageItem
from zigma_pl.data.samples import Split
from zigma_pl.data.sources.coco import COCO
from zigma_pl.data.sources.digits import Digits
from zigma_pl.data.sources.faceshq import FacesHQ
from zigma_pl.data.sources.folder import ImageFolder
from zigma_pl.data.sources.mm_celeba_hq import MMCelebAHQ
from zigma_pl.data.sources.ucf101 import UCF101

__all__ = [
    "COCO",
    "UCF101",
    "Batch",
    "Digits",
    "FacesHQ",
    "ImageDataModule",
    "ImageDataset",
    "ImageFolder",
    "ImageItem",
    "MMCelebAHQ",
    "RawBatch",
    "Split",
]
