"""Kind: files that claim more than they hold, or something else than plain numbers: one line, and nothing allocated."""

import io
import os
import pickle
import tracemalloc
import zipfile

import numpy as np
import pytest
import torch
from fuzzing import bounded
from hypothesis import given, strategies

from zigma_pl.core.errors import UserError
from zigma_pl.evaluation.metrics.statistics import FeatureStatistics
from zigma_pl.evaluation.store import SampleStore

PARTS = {
    "count": np.array(5),
    "origin": np.zeros(3),
    "sum": np.ones(3),
    "products": np.eye(3),
}


def test_statistics_survive_a_file_and_a_broken_one_is_named(tmp_path):
    path = tmp_path / "reference.npz"
    statistics = FeatureStatistics(3).update(torch.randn(5, 3))
    statistics.save(path)
    again = FeatureStatistics.load(path)
    assert (again.count, again.dim) == (5, 3)
    assert torch.equal(again.mean, statistics.mean)
    assert torch.equal(again.covariance, statistics.covariance)
    assert [file.name for file in tmp_path.iterdir()] == ["reference.npz"]
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(UserError, match=r"reference\.npz is not a file of feature statistics"):
        FeatureStatistics.load(path)
    np.savez(path, mean=np.zeros(3))
    with pytest.raises(UserError, match=r"reference\.npz is not a file of feature statistics"):
        FeatureStatistics.load(path)
    with pytest.raises(UserError, match=r"nowhere\.npz"):
        FeatureStatistics.load(tmp_path / "nowhere.npz")


def header(shape, dtype):
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": dtype, "fortran_order": False, "shape": shape})
    return file.getvalue()


def zipped(path, compression=zipfile.ZIP_STORED, **entries):
    """Write an .npz of the good parts, but for some that are given as bytes or arrays."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, entry in {**PARTS, **entries}.items():
            file = io.BytesIO()
            if not isinstance(entry, bytes):
                np.save(file, entry)
            archive.writestr(f"{name}.npy", entry if isinstance(entry, bytes) else file.getvalue())


HOSTILE = {
    "more in the header than in the file": {"products": header((10**6, 10**6), "<f8") + bytes(72)},
    "a shape below zero": {"products": header((-3, -3), "<f8") + bytes(72)},
    "compressed": {"compression": zipfile.ZIP_DEFLATED, "products": np.zeros((3000, 3000))},
    "pickled": {"origin": header((3,), "|O") + pickle.dumps([1, 2, 3])},
    "text": {"origin": np.array(["a", "b", "c"])},
    "float32": {"sum": np.ones(3, np.float32)},
    "another size": {"sum": np.ones(4)},
    "not square": {"products": np.zeros((3, 4))},
    "a fraction of a sample": {"count": np.array(5.5)},
    "fewer than no samples": {"count": np.array(-1)},
    "several counts": {"count": np.array([5, 5])},
    "NaN": {"products": np.full((3, 3), np.nan)},
    "no features": {"origin": np.zeros(0), "sum": np.zeros(0), "products": np.zeros((0, 0))},
    "no axes": {"origin": np.array(1.0)},
    "no NumPy file": {"origin": b"nothing"},
    "a header that is no Python": {"origin": b"\x93NUMPY\x01\x00\x04\x00(((("},
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_statistics_are_one_line_and_nothing_is_allocated(name, tmp_path):
    path = tmp_path / "reference.npz"
    zipped(path, **HOSTILE[name])
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match=r"reference\.npz is not a file of feature statistics") as caught:
            FeatureStatistics.load(path)
        assert tracemalloc.get_traced_memory()[1] < 2**22
    finally:
        tracemalloc.stop()
    assert "\n" not in str(caught.value)


def test_the_good_parts_are_read(tmp_path):
    zipped(tmp_path / "reference.npz")
    assert torch.equal(
        FeatureStatistics.load(tmp_path / "reference.npz").mean, torch.full((3,), 0.2, dtype=torch.float64)
    )


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "reference.npz")
    with pytest.raises(UserError, match="Not a regular file"):
        FeatureStatistics.load(tmp_path / "reference.npz")


@pytest.mark.usefixtures("one_gigabyte_more")
@bounded(max_examples=150)
@given(
    changes=strategies.lists(strategies.tuples(strategies.integers(0, 2000), strategies.integers(0, 255)), min_size=1)
)
def test_any_bytes_are_statistics_or_one_line(changes, tmp_path):
    path = tmp_path / "reference.npz"
    zipped(path)
    content = bytearray(path.read_bytes())
    for place, value in changes:
        content[place % len(content)] = value
    path.write_bytes(content)
    message = ""
    try:
        assert FeatureStatistics.load(path).dim == 3
    except UserError as error:
        message = str(error)
    assert "\n" not in message


@pytest.mark.parametrize(
    "arrays",
    [
        {"pictures": np.zeros((4, 1, 8, 8), np.float32)},
        {"pictures": np.zeros((3, 1, 8, 8), np.uint8)},
        {"pictures": np.zeros(4, np.uint8)},
        {"num_network_calls": np.array([1, 2])},
        {"num_network_calls": np.array(1.5)},
        {"sample_ids": np.arange(4).reshape(2, 2)},
    ],
)
def test_a_chunk_of_samples_with_something_else_in_it_is_damaged(arrays, tmp_path):
    store = SampleStore(tmp_path, {}, 4)
    store.open()
    whole = {"pictures": np.zeros((4, 1, 8, 8), np.uint8), "sample_ids": np.arange(4), "num_network_calls": np.array(2)}
    np.savez(store.path(0), **whole)
    assert store.read(0).num_network_calls == 2
    np.savez(store.path(0), **{**whole, **arrays})
    with pytest.raises(UserError, match="is damaged"):
        store.read(0)
