"""The conditions of samples in `predict` and previews, by sample id."""

from collections.abc import Sequence

import torch
from torch.utils.data import Dataset

from zigma_pl.core.batch import RawBatch
from zigma_pl.data.order import SampleKey
from zigma_pl.data.samples import Sample, SplitSamples, read_batch

NUM_EXAMPLE_CAPTIONS = 16


class ConditionSamples(Dataset[Sample]):
    """Samples without images: the condition is a function of the sample id, so no data set is needed on disk.

    Sample ids cycle through the classes or the captions, so that a grid shows all of them. With both, every class has
    the first caption, then every class the second, and so on.
    """

    def __init__(self, num_classes: int | None, captions: Sequence[str] | None) -> None:
        self.num_classes = num_classes
        self.captions = captions

    def __getitem__(self, key: SampleKey) -> Sample:
        sample_id, _ = key
        class_id, caption, round_of_classes = None, None, sample_id
        if self.num_classes is not None:
            round_of_classes, class_id = divmod(sample_id, self.num_classes)
        if self.captions is not None:
            caption = self.captions[round_of_classes % len(self.captions)]
        return Sample(sample_id, class_id=class_id, caption=caption)


class ItemConditions(Dataset[Sample]):
    """Items of a split, whose conditions are used for sampling, in a fixed random order.

    Args:
        samples: the split; sample ids cycle through its items.
        captions: captions that replace those of the items; None to keep them.
    """

    def __init__(self, samples: SplitSamples, captions: Sequence[str] | None = None) -> None:
        self.samples = samples
        self.captions = captions
        self._order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(0)).tolist()

    def __getitems__(self, keys: Sequence[SampleKey]) -> RawBatch:
        """Return the batch for these keys; only their sample ids are used."""
        ids = [sample_id for sample_id, _ in keys]
        raw = read_batch(self.samples, [(sample_id, self._order[sample_id % len(self._order)]) for sample_id in ids])
        if self.captions is None:
            return raw
        captions = [self.captions[sample_id % len(self.captions)] for sample_id in ids]
        return raw._replace(captions=captions, caption_features=None, caption_mask=None)


def example_captions(samples: SplitSamples) -> list[str]:
    """Return captions of up to NUM_EXAMPLE_CAPTIONS fixed items of a split with captions, without duplicates."""
    ids = range(min(NUM_EXAMPLE_CAPTIONS, len(samples)))
    captions = read_batch(ItemConditions(samples), [(sample_id, sample_id) for sample_id in ids]).captions
    assert captions is not None
    return list(dict.fromkeys(captions))
