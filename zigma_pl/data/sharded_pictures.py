"""Pictures that lie in tar shards."""

from io import BytesIO

from zigma_pl.data.images import ImageDataset, ImageItem, PixelDataset, decode_image
from zigma_pl.data.samples import PixelSamples
from zigma_pl.data.sharded_samples import ShardedSamples, ShardReader


class ShardedPictures(ImageDataset):
    """The pictures in shards, with the number in a class field, or the list in a captions field."""

    def __init__(
        self, reader: ShardReader, image: str, *, class_ids: str | None = None, captions: str | None = None
    ) -> None:
        self.reader = reader
        self.image = image
        self.class_ids = class_ids
        self.captions = captions

    def __len__(self) -> int:
        return len(self.reader)

    def __getitem__(self, index: int) -> ImageItem:
        shard, place = self.reader.locate(index)
        name = f"{shard.name}: {shard.index.keys[place]}.{self.image}"
        return ImageItem(
            decode_image(BytesIO(shard.read(place, self.image)), name=name),
            None if self.class_ids is None else shard.integer(place, self.class_ids),
            None if self.captions is None else shard.json(place, self.captions),
        )


class ShardedPixels(ShardedSamples, PixelSamples):
    """Pictures in shards as the loader reads them: the draws of `PixelSamples`, in an order of shard after shard."""

    def __init__(self, reader: ShardReader, items: PixelDataset, *, seed: int, horizontal_flip: bool) -> None:
        ShardedSamples.__init__(self, reader)
        PixelSamples.__init__(self, items, seed=seed, horizontal_flip=horizontal_flip)
