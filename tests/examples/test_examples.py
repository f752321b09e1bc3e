"""docs/extending.md prints the files of examples/, and each of them works outside of the repository, as printed."""

import re

import pytest
from examples.printed import BLOCKS, EXAMPLES, SESSIONS, TINY

from zigma_pl.cli.main import main
from zigma_pl.evaluation.record import read_result

# Of one example each; tests/examples/test_own_package.py runs those with all of them.
ALONE = [commands for commands in SESSIONS if not re.search("together|exported", str(commands))]


def own_classes(path):
    """The class paths in a YAML file that are of the package `own`; there is at least one."""
    found = set(re.findall(r"own\.\w+\.\w+", path.read_text()))
    assert found
    return found


def test_the_page_prints_every_file_as_it_is():
    printed = [text for language, text in BLOCKS if language in ("python", "yaml")]
    files = [*EXAMPLES.glob("own/*.py"), *EXAMPLES.glob("*.yaml")]
    assert len(files) >= 17
    assert not [path.name for path in files if path.read_text() not in printed]
    assert len(printed) == len(files) + 1  # and the lines that load a model


def test_the_files_import_from_public_paths_only():
    for path in EXAMPLES.glob("own/*.py"):
        for module in re.findall(r"from (zigma_pl\S*) import", path.read_text()):
            assert module.count(".") <= 1, (path.name, module)


@pytest.mark.parametrize("commands", ALONE, ids=lambda commands: " ".join(commands[-1]))
def test_commands_run_as_printed(commands, outside):
    for command in commands:
        assert main([*command, *TINY] if command[0] in ("fit", "test") else command) == 0
        if command[0] == "fit":
            (config,) = (outside / "logs").glob("*/version_0/config.yaml")
            assert own_classes(outside / command[-1]) <= own_classes(config)
        if command[0] == "test":
            scores = read_result(outside / "results" / "extractor.json").scores
            assert scores.keys() == {"validation_loss", "velocity_loss", "fid_random", "kid_random"}
