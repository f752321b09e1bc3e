import importlib
import pkgutil
import re
import subprocess
import sys
import time

import pytest

import zigma_pl
from zigma_pl.cli.main import COMMANDS

MODULES = [
    module.name for module in pkgutil.walk_packages(zigma_pl.__path__, "zigma_pl.") if "__main__" not in module.name
]
READ_CONFIGS = ("fit", "validate", "test", "predict", "prepare", "show-batch")  # their options are those of the model
OPTIONAL = (
    "mamba_ssm",
    "causal_conv1d",
    "transformers",
    "torchvision",
    "torch_fidelity",
    "mambapy",
    "av",
)


@pytest.mark.parametrize("name", MODULES)
def test_every_module_imports_without_the_optional_packages(name, monkeypatch):
    for package in OPTIONAL:
        monkeypatch.setitem(sys.modules, package, None)  # importing it now raises ImportError
    importlib.import_module(name)


def test_public_names_exist():
    assert all(getattr(zigma_pl, name) for name in zigma_pl.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Zigma'"):
        _ = zigma_pl.Zigma


def test_transformers_is_imported_only_if_it_is_used():
    program = (
        "import sys, zigma_pl; zigma_pl.GenerativeModule; assert 'torchmetrics' in sys.modules; "
        "assert 'transformers' not in sys.modules; from torchmetrics.multimodal import CLIPScore"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_torchmetrics_imported_first_keeps_its_text_metrics():
    program = "import torchmetrics, zigma_pl; from torchmetrics.text import BERTScore"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


@pytest.mark.parametrize("command", [name for name in COMMANDS if name not in READ_CONFIGS])
def test_help_of_other_commands_answers_without_torch(command):
    program = "import sys; from zigma_pl.cli.main import main; main([sys.argv[1], '--help'])"
    arguments = [sys.executable, "-X", "importtime", "-c", program, command]
    result = subprocess.run(arguments, capture_output=True, text=True, check=True)
    assert f"zigma_pl {command}" in result.stdout
    assert not re.search(r"\| +(torch|lightning)$", result.stderr, re.MULTILINE)


def test_help_answers_within_three_seconds_and_names_every_command():
    started = time.perf_counter()
    result = subprocess.run([sys.executable, "-m", "zigma_pl", "--help"], capture_output=True, text=True, check=True)
    assert time.perf_counter() - started < 3
    for command in COMMANDS:
        assert f"\n  {command} " in result.stdout
