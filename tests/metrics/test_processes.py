import subprocess
import sys

import numpy as np
import pytest
import torch

from zigma_pl.errors import UserError
from zigma_pl.metrics.frechet import frechet_distance
from zigma_pl.metrics.gather import check_sample_ids, gather_features
from zigma_pl.metrics.statistics import FeatureStatistics


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Features far from zero, an odd number of them, and the folder in which two processes have worked on them."""
    folder = tmp_path_factory.mktemp("two")
    features = 5 + torch.randn(31, 8, generator=torch.Generator().manual_seed(0))
    torch.save(features, folder / "features.pt")
    script = __file__.replace("test_processes", "two_processes")
    processes = [subprocess.Popen([sys.executable, script, str(rank), "2", str(folder)]) for rank in range(2)]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    return folder, features


def test_statistics_of_two_processes_are_those_of_one(run):
    folder, features = run
    whole = FeatureStatistics(8).update(features)
    other = FeatureStatistics(8).update(torch.randn(40, 8, generator=torch.Generator().manual_seed(1)))
    for name in ("statistics0", "statistics1", "uneven0", "uneven1"):
        reduced = FeatureStatistics.load(folder / f"{name}.npz")
        assert reduced.count == 31
        torch.testing.assert_close(reduced.mean, whole.mean, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(reduced.covariance, whole.covariance, rtol=1e-10, atol=1e-10)
        assert frechet_distance(reduced, other) == pytest.approx(frechet_distance(whole, other), rel=1e-10, abs=1e-10)


def test_gathered_features_are_in_the_order_of_the_samples(run):
    folder, features = run
    for rank in range(2):
        assert torch.equal(torch.load(folder / f"gathered{rank}.pt", weights_only=True), features)


def test_every_process_hears_of_a_wrong_number_and_of_a_sample_that_two_have(run):
    for rank in range(2):
        number, twice = (run[0] / f"messages{rank}.txt").read_text().splitlines()
        assert number == "there are 31 samples, but 32 are to be scored"
        assert "sample 0 and 0 more are there twice" in twice


def test_one_process_checks_too():
    check_sample_ids([3, 1, 2], 3)
    with pytest.raises(UserError, match="sample 1 and 1 more are there twice"):
        check_sample_ids(torch.tensor([1, 2, 1, 2, 5]), 5)
    with pytest.raises(UserError, match="2 samples, but 3"):
        check_sample_ids([1, 2], 3)
    assert gather_features([2, 0, 1], torch.tensor([[2.0], [0], [1]]), 3).flatten().tolist() == [0, 1, 2]
    with pytest.raises(UserError, match="twice"):
        gather_features([1, 1], torch.zeros(2, 1), 2)


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
    with pytest.raises(UserError, match=r"reference\.npz holds no statistics"):
        FeatureStatistics.load(path)
    np.savez(path, mean=np.zeros(3))
    with pytest.raises(UserError, match=r"reference\.npz holds no statistics"):
        FeatureStatistics.load(path)
    with pytest.raises(UserError, match=r"nowhere\.npz"):
        FeatureStatistics.load(tmp_path / "nowhere.npz")
