import subprocess

import pytest
from report.synthetic import write_project


@pytest.fixture(scope="session")
def project(tmp_path_factory):
    """A folder as `ablations` leaves it; tests that write into it write new files only."""
    from pathlib import Path

    folder = tmp_path_factory.mktemp("project")
    write_project(folder, Path(__file__).parents[2])
    return folder


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Run in an empty folder: records and pictures of the repository itself are not those of the tests."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def committed_results(repository):
    """Names of the files in results/ that are committed; others, of a smoke run say, do not count."""
    command = ["git", "ls-files", "results"]
    listed = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("no git checkout, so it is not known which records are committed")
    return listed.stdout.splitlines()
