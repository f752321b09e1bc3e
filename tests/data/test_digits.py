import numpy as np
import pytest
import torch

from zigma_pl.core.errors import UserError
from zigma_pl.data import Digits
from zigma_pl.data.sources.digits import load_all_digits


def all_splits():
    digits = Digits()
    return {split: digits.load_split(split) for split in ("train", "validation", "test")}


def test_splits_are_fixed_disjoint_complete_and_stratified():
    splits = all_splits()
    assert {name: len(split) for name, split in splits.items()} == {"train": 1433, "validation": 185, "test": 179}
    pixels, labels = load_all_digits()
    rows = np.concatenate([split.pixels.reshape(-1, 64) for split in splits.values()])
    assert sorted(map(bytes, rows)) == sorted(map(bytes, pixels.reshape(-1, 64)))
    for name, share in (("train", 0.8), ("validation", 0.1), ("test", 0.1)):
        counts = np.bincount(splits[name].labels)
        assert np.abs(counts - share * np.bincount(labels)).max() <= 1.6
    other_seed = Digits(seed=5).load_split("test")
    assert np.array_equal(other_seed.pixels, splits["test"].pixels)


def test_pixels_are_the_published_values_stretched():
    from sklearn.datasets import load_digits

    pixels, labels = load_all_digits()
    published = load_digits()
    assert np.array_equal(np.rint(pixels * (16 / 255)), published.images)
    assert (pixels.min(), pixels.max()) == (0, 255)
    assert np.array_equal(labels, published.target)


def test_batch_has_the_declared_shapes_and_range():
    digits = Digits(batch_size=6)
    assert digits.latent_shape == (1, 8, 8)
    assert (digits.num_classes, digits.caption_dim) == (10, None)
    digits.setup("fit")
    raw = next(iter(digits.train_dataloader()))
    assert (raw.images.shape, raw.images.dtype) == ((6, 1, 8, 8), torch.uint8)
    batch = digits.on_after_batch_transfer(raw, 0)
    assert (batch.latents.shape, batch.latents.dtype) == ((6, 1, 8, 8), torch.float32)
    assert (batch.latents.min(), batch.latents.max()) == (-1, 1)
    assert batch.sample_ids.tolist() == list(range(6))
    assert (batch.conditions["class"].values.dtype, batch.conditions["class"].mask) == (torch.int64, None)
    assert torch.equal((digits.decode(batch.latents) * 255).round().to(torch.uint8), raw.images)


def test_image_and_label_belong_together():
    digits = Digits(batch_size=8)
    digits.setup("validate")
    pixels, labels = load_all_digits()
    label_of = {pixel.tobytes(): label for pixel, label in zip(pixels, labels, strict=True)}
    for raw in digits.val_dataloader():
        assert [label_of[image.numpy().tobytes()] for image in raw.images] == raw.class_ids.tolist()


def test_predict_shows_all_classes_and_loads_nothing(monkeypatch):
    monkeypatch.setattr(Digits, "load_split", lambda *_: pytest.fail("predict must not open the data set"))
    digits = Digits(batch_size=8, num_predict_samples=25)
    digits.setup("predict")
    batches = [digits.on_after_batch_transfer(raw, 0) for raw in digits.predict_dataloader()]
    assert [len(batch.sample_ids) for batch in batches] == [8, 8, 8, 1]
    assert all(batch.latents is None for batch in batches)
    assert torch.cat([batch.sample_ids for batch in batches]).tolist() == list(range(25))
    assert torch.cat([batch.conditions["class"].values for batch in batches]).tolist() == [i % 10 for i in range(25)]


@pytest.mark.parametrize("option", ["batch_size", "num_predict_samples"])
def test_options_out_of_range_are_named(option):
    with pytest.raises(UserError, match=option):
        Digits(**{option: 0})
    with pytest.raises(UserError, match="num_workers"):
        Digits(num_workers=-1)
