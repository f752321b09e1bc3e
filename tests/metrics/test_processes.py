"""Scores do not depend on the number of processes, also where one of them has no sample."""

import pytest
import torch
from metrics import two_processes
from metrics.measured import CASES, all_losses, all_metrics, measure
from processes import Processes

from zigma_pl.core.errors import UserError
from zigma_pl.evaluation.features import ExtractedFeatures

SHARES = ("halves", "all and nothing")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What each of two processes has measured."""
    folder = tmp_path_factory.mktemp("two")
    Processes("rank", folder, *[(two_processes.main, rank, 2, folder) for rank in range(2)]).wait()
    return [torch.load(folder / f"results{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.fixture(scope="module")
def of_one():
    return measure(all_metrics(), (0, 1))


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("case", CASES)
def test_scores_of_two_processes_are_those_of_one(results, of_one, share, case):
    for rank in range(2):
        for computed in (case, f"{case}, again"):
            assert results[rank][share][computed] == pytest.approx(of_one[case], rel=1e-10)
        found, expected = (part[f"{case}, extracted"] for part in (results[rank][share], of_one))
        torch.testing.assert_close(found["mean"], expected["mean"], rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(found["covariance"], expected["covariance"], rtol=1e-10, atol=1e-10)
        assert torch.equal(found["features"], expected["features"])


@pytest.mark.parametrize("share", SHARES)
def test_losses_of_two_processes_are_those_of_one(results, share):
    for rank in range(2):
        assert results[rank]["loss"][share] == pytest.approx(all_losses((0, 1)), rel=1e-10)


def test_every_process_raises_for_a_wrong_number_and_for_a_sample_that_two_have(results):
    for rank in range(2):
        twice, number = results[rank]["errors"]
        assert "sample 0 and 0 more occur twice" in twice
        assert "expected 4 samples to score, got 2" in number


def test_one_process_checks_too():
    for ids, message in (([1, 2, 1, 2, 5], "sample 1 and 1 more occur twice"), ([1, 2], "expected 5 .* got 2")):
        gathered = ExtractedFeatures(1, 5, keep=False)
        gathered.update(torch.zeros(len(ids), 1), torch.tensor(ids))
        with pytest.raises(UserError, match=message):
            gathered.compute()
