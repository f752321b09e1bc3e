"""The YAML files of experiments/, and the config that a scale adds to each."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from zigma_pl.core.errors import UserError
from zigma_pl.core.records import check_name
from zigma_pl.suite.runs.composed import compose, option

_TABLE = re.compile(r"(table|figure)\w+?_")


@dataclass(frozen=True)
class ExperimentFile:
    """One file of experiments/: `table1_sweep.yaml` belongs to table 1, `digits.yaml` to no table."""

    path: Path

    @property
    def name(self) -> str:
        """Stem of the file name; logs and records have the same name."""
        return self.path.stem

    @property
    def prefix(self) -> str | None:
        """Table or figure, such as "table1"; None if the experiment belongs to neither."""
        match = _TABLE.match(self.name)
        return None if match is None else match[0].removesuffix("_")


def find_experiments(folder: Path, table: str | None = None, patterns: Sequence[str] = ("*",)) -> list[ExperimentFile]:
    """Return the experiments of a folder, sorted by name, with numbers in names by value.

    Args:
        folder: folder with one YAML file per experiment.
        table: number of a table, such as "1" or "1x"; None for all experiments.
        patterns: shell patterns; an experiment is selected if its name matches one of them.

    Raises:
        UserError: no experiment is selected by `table` or a pattern, or a file name cannot be the name of a record.
    """
    experiments = [ExperimentFile(path) for path in sorted(folder.glob("*.yaml"), key=_natural_order)]
    for experiment in experiments:
        check_name(experiment.name, str(experiment.path))
    if not experiments:
        raise UserError(f"--experiments {folder}: the folder does not exist or has no .yaml file: choose another one")
    of_table = [experiment for experiment in experiments if table is None or experiment.prefix == f"table{table}"]
    if table is not None and not of_table:
        tables = sorted({experiment.prefix.removeprefix("table") for experiment in experiments if experiment.prefix})
        raise UserError(f"--table {table}: {folder} has no table{table}_*.yaml: choose one of {', '.join(tables)}")
    for pattern in patterns:
        if not any(fnmatchcase(experiment.name, pattern) for experiment in of_table):
            names = ", ".join(experiment.name for experiment in of_table)
            raise UserError(f"--names {pattern}: no such experiment: choose among {names}")
    return [experiment for experiment in of_table if any(fnmatchcase(experiment.name, pattern) for pattern in patterns)]


def overlay_of(experiment: ExperimentFile, scale: str, scales: Path) -> Path | None:
    """Return the config that a scale adds to an experiment, None if the scale has none for it.

    It is the first existing file, in the folder `scales`, of `<scale>/<experiment>.yaml`; for experiments of tables,
    the same with fewer and fewer words of the name, down to `<scale>/<table>.yaml`; and `<scale>.yaml`. An experiment
    of no table therefore runs only at scales with a file for it, and so does an experiment that names an optimiser or a
    schedule which `<scale>.yaml` would replace.
    """
    candidates = [scales / scale / f"{experiment.name}.yaml"]
    if experiment.prefix is not None:
        words = experiment.name.split("_")
        candidates += [scales / scale / f"{'_'.join(words[:count])}.yaml" for count in range(len(words) - 1, 0, -1)]
        candidates.append(scales / f"{scale}.yaml")
    found = next((path for path in candidates if path.is_file()), None)
    is_shared = found == scales / f"{scale}.yaml"
    return None if found is None or (is_shared and _replaces_recipe(found, experiment)) else found


def _replaces_recipe(overlay: Path, experiment: ExperimentFile) -> bool:
    """Return whether a config sets the optimiser or the schedule of an experiment that names its own."""
    own, above = compose([experiment.path]), compose([overlay])
    return any(option(own, name) and option(above, name) for name in ("model.optimizer", "model.lr_schedule"))


def _natural_order(path: Path) -> list[tuple[int, str]]:
    parts = re.split(r"(\d+)", path.stem)
    return [(int(part), "") if part.isdecimal() else (0, part) for part in parts]
