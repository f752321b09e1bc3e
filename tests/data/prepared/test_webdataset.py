import hashlib
import pickle
import sys
import tarfile
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from zigma_pl.commands import prepare
from zigma_pl.data import Digits, tar_shards
from zigma_pl.data.prepared import webdataset as ours
from zigma_pl.data.prepared.arrays import ArraySplit
from zigma_pl.data.prepared.arrays import write_shard as write_arrays
from zigma_pl.data.prepared.manifest import File, Shard
from zigma_pl.data.prepared.record import PreparedRecord
from zigma_pl.data.prepared.remote import address_of, fetch, is_remote
from zigma_pl.data.samples import SampleLoader
from zigma_pl.errors import UserError

COUNTS = (5, 2, 4)
DRAWS = {"seed": 3, "horizontal_flip": True, "max_caption_tokens": 4}


def record(index, *, frames=None, captions=True, pixels=False):
    rng = np.random.default_rng(index)
    axes = () if frames is None else (frames,)
    texts = [f"caption {n} of {index} é" for n in range(1 + index % 3)] if captions else None
    return PreparedRecord(
        index,
        pixels=rng.integers(0, 256, (*axes, 3, 6, 5), dtype=np.uint8) if pixels else None,
        moments=None if pixels else rng.standard_normal((2, *axes, 8, 3, 2)).astype(np.float32),
        class_id=index % 4,
        captions=texts,
        caption_features=texts and [rng.standard_normal((1 + n, 5)).astype(np.float32) for n in range(len(texts))],
    )


def prepared(folder, write=ours.write_shard, counts=COUNTS, dtype=np.float32, **options):
    """Write shards of these sizes; returns their manifest entries."""
    folder.mkdir(parents=True, exist_ok=True)
    shards, first = [], 0
    for number, count in enumerate(counts):
        records = [record(index, **options) for index in range(first, first + count)]
        paths = write(folder, f"shard-{number:05d}", records, np.dtype(dtype))
        files = {path.name: File(path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest()) for path in paths}
        shards.append(Shard(f"shard-{number:05d}", first, count, files, []))
        first += count
    return shards


def assert_same(batch, other):
    for name, part, theirs in zip(batch._fields, batch, other, strict=True):
        assert type(part) is type(theirs), name
        if isinstance(part, torch.Tensor):
            assert part.dtype == theirs.dtype, name
            assert torch.equal(part, theirs), name
        else:
            assert part == theirs, name


KEYS = [(7, 0), (8, 10), (9, 5), (10, 6), (11, 6), (12, 4), (13, 7)]


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("options", [{}, {"pixels": True, "captions": False}, {"frames": 2}], ids=str)
def test_the_same_batches_as_from_arrays(tmp_path, options, dtype):
    draws = {**DRAWS, "max_caption_tokens": 4 if options.get("captions", True) else None}
    tar = ours.TarSplit(tmp_path / "t", prepared(tmp_path / "t", dtype=dtype, **options), **draws)
    shards = prepared(tmp_path / "a", write_arrays, dtype=dtype, **options)
    arrays = ArraySplit(tmp_path / "a", shards, **draws)
    assert len(tar) == len(arrays) == sum(COUNTS)
    assert_same(tar.__getitems__(KEYS), arrays.__getitems__(KEYS))


def test_equal_records_give_equal_bytes_and_nothing_else_is_left(tmp_path):
    first, second = prepared(tmp_path / "1"), prepared(tmp_path / "2")
    assert [shard.files for shard in first] == [shard.files for shard in second]
    assert sorted(path.name for path in (tmp_path / "1").iterdir()) == [f"shard-{n:05d}.tar" for n in range(3)]


def test_a_failing_write_leaves_nothing(tmp_path, monkeypatch):
    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tarfile.TarFile, "addfile", full_disk)
    with pytest.raises(OSError, match="No space left"):
        ours.write_shard(tmp_path, "shard-00000", [record(0)], np.dtype(np.float32))
    assert list(tmp_path.iterdir()) == []


def test_the_library_reads_our_shards(tmp_path):
    import webdataset as wds

    prepared(tmp_path)
    pattern = str(tmp_path / "shard-{00000..00002}.tar")
    samples = list(wds.WebDataset(pattern, shardshuffle=False).decode())
    assert len(samples) == sum(COUNTS)
    for index, sample in enumerate(samples):
        expected = record(index)
        assert sample["__key__"] == f"{index:09d}"
        assert np.array_equal(sample["moments.npy"], expected.moments)
        assert sample["cls"] == expected.class_id
        assert sample["captions.json"] == expected.captions
        assert sample["token_counts.json"] == [len(rows) for rows in expected.caption_features]
        assert np.array_equal(sample["caption_features.npy"], np.concatenate(expected.caption_features))


def sample_ids(batches):
    return [sample_id for batch in batches for sample_id in batch.sample_ids.tolist()]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_ranks_see_what_one_sees(tmp_path, num_workers):
    shards = prepared(tmp_path)

    def batches(rank, world_size, steps_done=0, num_steps=11):
        split = ours.TarSplit(tmp_path, shards, **DRAWS)
        order = split.training_order(1, seed=0, rank=rank, world_size=world_size, steps_done=lambda: steps_done)
        return list(islice(SampleLoader(split, order, num_workers), num_steps))

    alone = {batch.sample_ids.item(): batch for batch in batches(0, 1, num_steps=22)}
    ranks = [batch for rank in range(2) for batch in batches(rank, 2)]
    assert sorted(sample_ids(ranks)) == list(range(22))
    for batch in ranks:
        assert_same(batch, alone[batch.sample_ids.item()])
    for resumed, batch in zip(batches(1, 2, steps_done=4), ranks[15:], strict=False):
        assert_same(resumed, batch)


def test_evaluation_sees_every_sample_once(tmp_path):
    split = ours.TarSplit(tmp_path, prepared(tmp_path), **{**DRAWS, "horizontal_flip": False})
    loaders = [SampleLoader(split, split.evaluation_order(3, rank=rank, world_size=2), 0) for rank in range(2)]
    batches = [batch for loader in loaders for batch in loader]
    assert sample_ids(batches) == list(range(11))
    moments = torch.cat([batch.moments for batch in batches])
    assert torch.equal(moments, torch.tensor(np.stack([record(index).moments[0] for index in range(11)])))


def test_a_shard_is_indexed_once(tmp_path, monkeypatch):
    indexed = []
    index_shard = tar_shards.index_shard
    monkeypatch.setattr(tar_shards, "index_shard", lambda *args: indexed.append(args[0]) or index_shard(*args))
    split = ours.TarSplit(tmp_path, prepared(tmp_path, counts=(1,) * 9), **DRAWS)
    for _ in range(3):
        split.__getitems__([(0, index) for index in range(9)])
    assert len(indexed) == len(set(indexed)) == 9


def test_another_process_can_have_an_open_split(tmp_path):
    split = ours.TarSplit(tmp_path, prepared(tmp_path), **DRAWS)
    expected = split.__getitems__(KEYS)
    assert_same(pickle.loads(pickle.dumps(split)).__getitems__(KEYS), expected)


def test_missing_and_changed_shards_are_named(tmp_path):
    shards = prepared(tmp_path)
    path = tmp_path / "shard-00001.tar"
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    with pytest.raises(UserError, match=r"shard-00001\.tar: has"):
        ours.TarSplit(tmp_path, shards, **DRAWS)
    path.unlink()
    with pytest.raises(UserError, match=r"shard-00001\.tar: is missing"):
        ours.TarSplit(tmp_path, shards, **DRAWS)
    prepared(tmp_path / "other", counts=(1,))
    path.write_bytes((tmp_path / "other" / "shard-00000.tar").read_bytes().ljust(len(content), b"\0"))
    with pytest.raises(UserError, match=r"shard-00001\.tar holds 1 samples, expected 2"):
        ours.TarSplit(tmp_path, shards, **DRAWS).__getitems__([(0, 5)])


# --- from an address --------------------------------------------------------------------------------------------------


def test_addresses():
    assert [is_remote(place) for place in ("data/x", "/data/x", "https://h/x", "s3://b/x", "pipe:cat /x/{}")] == [
        False, False, True, True, True,
    ]  # fmt: skip
    assert address_of("https://h/x/", "train/a.tar") == "https://h/x/train/a.tar"
    assert address_of("pipe:aws s3 cp s3://b/{} -", "train/a.tar") == "pipe:aws s3 cp s3://b/train/a.tar -"


@pytest.mark.parametrize("keep", [True, False])
def test_shards_from_a_pipe(tmp_path, keep):
    shards = prepared(tmp_path / "there")
    local = ours.TarSplit(tmp_path / "there", shards, **DRAWS)
    log, keep_in = tmp_path / "log", tmp_path / "kept" if keep else None
    split = ours.TarSplit(f"pipe:echo {{}} >> {log}; cat {tmp_path}/there/{{}}", shards, keep_in, **DRAWS)
    for _ in range(2):
        assert_same(split.__getitems__(KEYS), local.__getitems__(KEYS))
    assert sorted(log.read_text().split()) == [f"shard-{n:05d}.tar" for n in range(3)]
    if keep:
        kept = {file.sha256 + ".tar" for shard in shards for file in shard.files.values()}
        assert {path.name for path in keep_in.iterdir()} == kept
        log.unlink()
        assert_same(
            ours.TarSplit("pipe:false {}", shards, keep_in, **DRAWS).__getitems__(KEYS), local.__getitems__(KEYS)
        )


def test_training_from_what_prepare_wrote(tmp_path):
    out = tmp_path / "out"
    options = ["--out", str(out), "--format", "webdataset", "--shard-size", "400"]
    assert prepare.main(["digits", *options]) == 0
    assert prepare.main(["digits", *options, "--check"]) == 0

    def encoded(cache, split, num_batches=None):
        data = Digits()
        data.cache, data.keep_fetched_in = cache, str(tmp_path / "kept")
        loader = {"train": data.train_dataloader, "validation": data.val_dataloader}[split]()
        batches = [data.on_after_batch_transfer(raw, 0) for raw in islice(loader, num_batches)]
        rows = [zip(b.sample_ids.tolist(), b.latents, b.condition.tolist(), strict=True) for b in batches]
        return [
            (sample_id, latents.numpy().tobytes(), class_id) for row in rows for sample_id, latents, class_id in row
        ]

    live = encoded(None, "validation")
    for cache in (str(out), f"pipe:cat {out}/{{}}"):
        assert encoded(cache, "validation") == live
        epoch = encoded(cache, "train", 23)[:1433]
        assert [row[0] for row in epoch] == list(range(1433))
        assert sorted(row[1:] for row in epoch) == sorted(row[1:] for row in encoded(None, "train", 23)[:1433])


def test_only_shards_can_be_read_from_an_address(tmp_path):
    out = tmp_path / "out"
    assert prepare.main(["digits", "--out", str(out), "--splits", "validation"]) == 0
    data = Digits()
    data.cache = f"pipe:cat {out}/{{}}"
    with pytest.raises(UserError, match="--format webdataset"):
        data.setup("validate")


def test_what_cannot_be_fetched_or_is_another_file(tmp_path):
    shards = prepared(tmp_path)
    for command, fault in (("false", "cannot fetch pipe:false"), ("echo other", "not the file that the manifest")):
        split = ours.TarSplit(f"pipe:{command} # {{}}", shards, tmp_path / "kept", **DRAWS)
        with pytest.raises(UserError, match=fault) as error:
            split.__getitems__(KEYS)
        assert "\n" not in str(error.value)
    assert list((tmp_path / "kept").iterdir()) == []


@pytest.mark.parametrize("name", ["a.tar; touch x", "$(touch x)", "../a", "a'b", "-rf", "/a", "a//b", ""])
def test_a_manifest_cannot_inject_a_command(in_tmp, name):
    with pytest.raises(UserError, match="refused"):
        fetch("pipe:true {}", name)
    assert not Path("x").exists()


def test_a_manifest_cannot_choose_what_is_kept(tmp_path):
    kept = tmp_path / "kept"
    kept.mkdir()
    (shard,) = prepared(tmp_path / "there", counts=(1,))
    (tmp_path / "mine.tar").write_bytes((tmp_path / "there" / "shard-00000.tar").read_bytes())
    files = {name: File(file.num_bytes, "../mine") for name, file in shard.files.items()}
    split = ours.TarSplit(f"pipe:cat {tmp_path}/there/{{}}", [replace(shard, files=files)], kept, **DRAWS)
    with pytest.raises(UserError, match="no SHA-256"):
        split.__getitems__([(0, 0)])


def test_without_the_library_only_addresses_fail(tmp_path, monkeypatch):
    shards = prepared(tmp_path)
    monkeypatch.setitem(sys.modules, "webdataset", None)
    ours.TarSplit(tmp_path, shards, **DRAWS).__getitems__(KEYS)
    with pytest.raises(UserError, match=r'pip install "zigma_pl\[webdataset\]"'):
        ours.TarSplit("https://host/folder", shards, **DRAWS).__getitems__(KEYS)
