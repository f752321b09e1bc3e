import shutil
import sys

import pytest
from examples.printed import EXAMPLES


@pytest.fixture
def outside(tmp_path, monkeypatch):
    """The working directory, outside of the repository, with copies of the examples; `own` is imported from there."""
    shutil.copytree(EXAMPLES, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)  # where `python -m` looks first
    yield tmp_path
    for name in [name for name in sys.modules if name == "own" or name.startswith("own.")]:
        del sys.modules[name]
