import os
import pickle
from itertools import islice

import numpy as np
import pytest
import torch
from data.prepared.tiny import faces, prepare_faces, save_tiny_kl, write_faces

from zigma_pl.cli.commands.prepare import main
from zigma_pl.core.errors import UserError
from zigma_pl.core.files import sha256
from zigma_pl.data import Digits
from zigma_pl.data.cache.arrays import ArraySplit, map_array, write_shard
from zigma_pl.data.cache.manifest import File, Shard
from zigma_pl.data.cache.record import PreparedRecord


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with the faces in `mm`, an autoencoder in `kl`, and both prepared in four ways."""
    folder = tmp_path_factory.mktemp("prepared")
    root, autoencoder = write_faces(folder / "mm"), save_tiny_kl(folder / "kl")
    assert prepare_faces(root, folder / "float32", autoencoder) == 0
    assert prepare_faces(root, folder / "float16", autoencoder, dtype="float16") == 0
    assert prepare_faces(root, folder / "pixels") == 0
    return folder


def batches(data, stage, count):
    data.setup(stage)
    loader = data.train_dataloader() if stage == "fit" else data.test_dataloader()
    return [(raw, data.on_after_batch_transfer(raw, 0)) for raw in islice(loader, count)]


@pytest.mark.parametrize(("cache", "atol"), [("float32", 1e-6), ("float16", 1e-3), ("pixels", 0)])
@pytest.mark.parametrize("stage", ["fit", "test"])
def test_cached_and_live_training_see_the_same(place, cache, atol, stage):
    autoencoder = "identity" if cache == "pixels" else str(place / "kl")
    options = {"autoencoder": autoencoder, "horizontal_flip": True, "seed": 3}
    live = batches(faces(place / "mm", **options), stage, 8)
    cached = batches(faces(place / "nowhere", cache=str(place / cache), **options), stage, 8)
    assert len(live) == len(cached) > 0
    for (raw, batch), (prepared_raw, prepared) in zip(live, cached, strict=True):
        assert torch.equal(prepared.sample_ids, batch.sample_ids)
        torch.testing.assert_close(prepared.latents, batch.latents, rtol=0, atol=atol)
        (found, found_mask), (features, mask) = prepared.conditions["caption"], batch.conditions["caption"]
        torch.testing.assert_close(found, features, rtol=0, atol=2e-3 if atol == 1e-3 else 0)
        assert torch.equal(found_mask, mask)
        assert prepared_raw.captions == raw.captions
    mirrored = batches(faces(place / "mm", **{**options, "horizontal_flip": False}), stage, 8)
    same = [torch.equal(a.latents, b.latents) for (_, a), (_, b) in zip(live, mirrored, strict=True)]
    assert all(same) == (stage == "test")


@pytest.mark.parametrize("cache", [None, "pixels", "float32"])
def test_only_latents_from_a_cache_come_without_their_images(place, cache):
    autoencoder = "identity" if cache == "pixels" else str(place / "kl")
    options = {} if cache is None else {"cache": str(place / cache)}
    data = faces(place / "mm", autoencoder=autoencoder, horizontal_flip=True, **options)
    ((_, batch),) = batches(data, "fit", 1)
    assert data.has_images == (batch.images is not None) == (cache != "float32")
    if cache == "pixels":
        torch.testing.assert_close(batch.images / 127.5 - 1, batch.latents)


def test_neither_workers_nor_batch_size_change_what_is_read(place):
    def rows(**options):
        data = faces(place / "nowhere", cache=str(place / "pixels"), horizontal_flip=True, **options)
        data.setup("fit")
        loader = data.train_dataloader()
        raws = list(islice(loader, 40 // data.batch_size))
        if loader._iterator is not None:
            loader._iterator._shutdown_workers()
        return torch.cat([raw.images for raw in raws]), [caption for raw in raws for caption in raw.captions]

    pictures, captions = rows(batch_size=20)
    for options in ({"batch_size": 4}, {"batch_size": 20, "num_workers": 2}):
        others = rows(**options)
        assert torch.equal(others[0], pictures)
        assert others[1] == captions


def test_training_predicting_and_previews_need_only_the_cache(place):
    data = faces(place / "nowhere", cache=str(place / "float32"), autoencoder=str(place / "kl"))
    data.setup("fit")
    assert data.on_after_batch_transfer(next(iter(data.val_dataloader())), 0).latents.shape == (3, 4, 8, 8)
    assert data.latent_shape == (4, 8, 8)
    data.setup("predict")
    assert next(iter(data.predict_dataloader())).moments is None
    assert data.conditions(range(3)).conditions["caption"].values.shape == (3, 12, 16)


def test_classes(tmp_path):
    assert main(["digits", "--out", str(tmp_path / "d"), "--num_workers", "0"]) == 0
    live, cached = Digits(), Digits(cache=str(tmp_path / "d"))
    for data in (live, cached):
        data.setup("fit")
    for one, other in zip(islice(live.train_dataloader(), 5), islice(cached.train_dataloader(), 5), strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.class_ids, other.class_ids)


def records_of_clips(count):
    rng = np.random.default_rng(0)
    return [
        PreparedRecord(
            index,
            moments=rng.standard_normal((2, 3, 8, 2, 2)),
            class_id=index % 4,
            captions=[f"Käse {index}", ""] if index % 2 else ["one"],
            caption_features=[rng.standard_normal((n + 1, 5)) for n in range(2 if index % 2 else 1)],
        )
        for index in range(count)
    ]


def written(folder, records, first):
    name = f"shard-{first:05d}"
    paths = write_shard(folder, name, records, np.dtype(np.float32))
    files = {path.name: File(num_bytes=path.stat().st_size, sha256=sha256(path)) for path in paths}
    return Shard(name=name, first_item=first, num_items=len(records), files=files, skipped=[])


def test_clips_and_ragged_captions_over_several_shards(tmp_path):
    records = records_of_clips(7)
    shards = [written(tmp_path, records[:4], 0), written(tmp_path, records[4:], 4)]
    split = ArraySplit(tmp_path, shards, num_classes=4, seed=0, horizontal_flip=True, max_caption_tokens=4)
    split = pickle.loads(pickle.dumps(split))
    assert len(split) == 7
    order = [5, 0, 6, 3, 3]
    for index, found in zip(order, split.records(order), strict=True):
        assert found.index == index
        assert np.array_equal(found.moments, records[index].moments.astype(np.float32))
        assert (found.class_id, found.captions) == (records[index].class_id, records[index].captions)
        for one, other in zip(found.caption_features, records[index].caption_features, strict=True):
            assert np.array_equal(one, other.astype(np.float32))
        with pytest.raises(ValueError, match="read-only"):
            found.moments[:] = 0
    batch = split.__getitems__([(10 + place, index) for place, index in enumerate(order)])
    assert batch.sample_ids.tolist() == [10, 11, 12, 13, 14]
    assert batch.class_ids.tolist() == [index % 4 for index in order]
    assert batch.moments.shape == (5, 3, 8, 2, 2)
    assert batch.caption_features.shape == (5, 4, 5)
    assert (batch.caption_features.abs().sum(-1) > 0).equal(batch.caption_mask)
    both = [torch.from_numpy(records[index].moments.astype(np.float32)) for index in order]
    chosen = [[torch.equal(row, mirror) for mirror in pair] for row, pair in zip(batch.moments, both, strict=True)]
    assert all(sum(pair) == 1 for pair in chosen)
    assert len({tuple(pair) for pair in chosen}) == 2


def test_a_file_cut_short_or_gone_is_named(tmp_path):
    shard = written(tmp_path, records_of_clips(3), 0)
    path = tmp_path / "shard-00000.moments.npy"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"shard-00000\.moments\.npy has \d+ bytes instead of \d+"):
        ArraySplit(tmp_path, [shard], seed=0, horizontal_flip=False, max_caption_tokens=None)
    path.unlink()
    with pytest.raises(UserError, match=r"shard-00000\.moments\.npy is missing"):
        ArraySplit(tmp_path, [shard], seed=0, horizontal_flip=False, max_caption_tokens=None)


def test_arrays_of_objects_are_refused(tmp_path):
    np.save(tmp_path / "a.npy", np.array([{}], dtype=object))
    with pytest.raises(UserError, match=r"a\.npy is not a plain NumPy array"):
        map_array(tmp_path / "a.npy")
    (tmp_path / "b.npy").write_bytes(b"nothing of the kind")
    with pytest.raises(UserError, match=r"b\.npy is not a plain NumPy array"):
        map_array(tmp_path / "b.npy")


def test_mapping_keeps_no_file_open(tmp_path):
    np.save(tmp_path / "a.npy", np.arange(10))
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    arrays = [map_array(tmp_path / "a.npy") for _ in range(20)]
    assert arrays[-1][9] == 9
    assert not before or len(os.listdir("/proc/self/fd")) == before


def test_classes_that_the_set_does_not_have_are_refused(tmp_path):
    shards = [written(tmp_path, records_of_clips(4), 0)]
    split = ArraySplit(tmp_path, shards, num_classes=3, seed=0, horizontal_flip=True, max_caption_tokens=4)
    with pytest.raises(UserError, match="not below 3"):
        split.records([0])
