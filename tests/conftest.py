import gc
import os
from pathlib import Path

import pytest
import torch
from fuzzing import memory_limit

# Tests do not use the network; without it, each name on the Hugging Face Hub would be retried for half a minute.
os.environ["HF_HUB_OFFLINE"] = "1"
# Test processes run side by side; each one's threads would wait for cores that the others have.
torch.set_num_threads(1)

REPOSITORY = Path(__file__).parents[1]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Start each worker at its own part of the suite, so that it seldom needs the module fixtures of another worker."""
    if config.option.dist != "load":  # what -n alone means
        return None
    from xdist.scheduler import WorkStealingScheduling

    return WorkStealingScheduling(config, log)


def pytest_collection():
    """Collect no garbage while tests are imported: there is hardly any, and the search takes a fifth of the time."""
    gc.disable()


def pytest_collection_finish():
    """Exempt what has been imported from garbage collection, which else takes a tenth of the time of all tests."""
    gc.freeze()
    gc.enable()


@pytest.fixture
def one_gigabyte_more():
    """Limit the memory of the process to 1 GB above what it has."""
    with memory_limit():
        yield


@pytest.fixture
def repository():
    """The repository's folder, whose configs and experiments the tests run."""
    return REPOSITORY


@pytest.fixture
def in_tmp(tmp_path, monkeypatch):
    """Run the test in an empty folder, so that logs and samples land there."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
