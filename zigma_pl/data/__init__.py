from zigma_pl.data.base import ImageDataModule
from zigma_pl.data.digits import Digits
from zigma_pl.data.mm_celeba_hq import MMCelebAHQ

__all__ = ["Digits", "ImageDataModule", "MMCelebAHQ"]
