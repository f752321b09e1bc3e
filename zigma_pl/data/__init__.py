from zigma_pl.data.base import ImageDataModule
from zigma_pl.data.coco import COCO
from zigma_pl.data.digits import Digits
from zigma_pl.data.faceshq import FacesHQ
from zigma_pl.data.folder import ImageFolder
from zigma_pl.data.mm_celeba_hq import MMCelebAHQ
from zigma_pl.data.ucf101 import UCF101

__all__ = ["COCO", "UCF101", "Digits", "FacesHQ", "ImageDataModule", "ImageFolder", "MMCelebAHQ"]
