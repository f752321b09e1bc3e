"""The experiments of a folder and the `about:` blocks of their YAML files."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import AfterValidator, Field, ValidationError

from zigma_pl.core.errors import UserError
from zigma_pl.core.records import Part, check_name, one_line, problems, read_content
from zigma_pl.suite.report.scores import PUBLISHED_NAMES

NOTHING = "nothing"  # no published number, or no open choice
# The example in experiments/README.md.
FORM = """\
# python -m zigma_pl fit --config experiments/table1_zigzag8.yaml
about:
  table: table 1
  title: scan schemes on MultiModal-CelebA-HQ 256
  name: zigzag-8
  paper:
    published: {FID: 45.5, FDD: 26.4, KID: 0.011}
    protocol: 5,000 samples
    left_open: batch size (here 32 per process) and steps of this table (here 400,000, as in the released configs).
  gpu_hours: not measured
  notes:
    - any other remark.
model:
"""
_REMEDY = "experiments/README.md has an example"
_MAX_BYTES = 256 * 1024


def _checked_line(text: str) -> str:
    if not text.isprintable():
        raise ValueError("must be one line")
    return text


def _checked_score(label: str) -> str:
    if label not in PUBLISHED_NAMES:
        raise ValueError(f"is not a known score: scores are {', '.join(PUBLISHED_NAMES)}")
    return label


Line = Annotated[str, Field(min_length=1, max_length=1000), AfterValidator(_checked_line)]
# As printed in the paper, so that 14.50 keeps its zero.
Number = Annotated[str, Field(pattern=r"^\d+(\.\d+)?\z", max_length=20)]
Published = dict[Annotated[str, AfterValidator(_checked_score)], Number]


class Paper(Part):
    """The paper's information on an experiment in one of its tables.

    Attributes:
        published: published numbers by score, such as FID; may be empty.
        left_open: what the paper does not state, with the choice made here, or "nothing".
        protocol: how the numbers were measured, if the paper states it.
    """

    published: Published
    left_open: Line
    protocol: Line | None = None


class About(Part):
    """The `about:` block.

    Attributes:
        title: what the table compares, or a description of an experiment of no table.
        table: such as "table 1" or "figure 4"; None for an experiment of no table.
        name: name of the experiment in its table; by default the stem of the file name.
        paper: information from the paper; None for tables that are not in the paper.
        gpu_hours: duration of a training, as text.
        notes: further remarks.
    """

    title: Line
    table: Annotated[str, Field(pattern=r"^(table|figure) [0-9A-Za-z]+\z", max_length=20)] | None = None
    name: Line | None = None
    paper: Paper | None = None
    gpu_hours: Line = "not measured"
    notes: list[Line] = Field(default_factory=list)


@dataclass(frozen=True)
class Experiment:
    """A YAML file and its `about:` block. Result records refer to it by `name`, tables show its `label`."""

    file: Path
    about: About

    @property
    def name(self) -> str:
        """Stem of the file name."""
        return self.file.stem

    @property
    def label(self) -> str:
        """Name in its table."""
        return self.about.name or self.name

    @property
    def command(self) -> str:
        """Command that trains it."""
        return f"python -m zigma_pl fit --config experiments/{self.file.name}"

    @property
    def published(self) -> dict[str, str]:
        """Published numbers as printed, by the score names of the records."""
        published = self.about.paper.published if self.about.paper else {}
        return {PUBLISHED_NAMES[label]: number for label, number in published.items()}


def experiment_name(run: str) -> str:
    """Return the name of a run's experiment: that of the run without the suffix _seed<number>."""
    return re.sub(r"_seed\d+$", "", run)


def read_experiment(file: Path) -> Experiment:
    """Read the `about:` block of a file; raises UserError if it is missing or invalid."""
    options = _read_options(file)
    if "about" not in options:
        raise UserError(f"{file}: has no `about:` block: {_REMEDY}")
    return _experiment(file, options)


def read_config(file: Path) -> Experiment:
    """Read a config whose `about:` block may be missing; its title is then the name of the file.

    Raises:
        UserError: the file is missing or invalid.
    """
    return _experiment(file, {"about": {"title": file.stem}, **_read_options(file)})


def _read_options(file: Path) -> dict[str, Any]:
    check_name(file.stem, str(file))
    content = read_content(file, _REMEDY, _MAX_BYTES)
    try:
        # All values as strings, so that numbers stay as they are written.
        options = yaml.load(content, Loader=yaml.BaseLoader)  # only strings, lists and dictionaries
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{file}: is not valid YAML: {one_line(str(error))}") from error
    if not isinstance(options, dict):
        raise UserError(f"{file}: is no config: {_REMEDY}")
    return options


def _experiment(file: Path, options: dict[str, Any]) -> Experiment:
    try:
        return Experiment(file, About.model_validate(options["about"]))
    except ValidationError as error:
        raise UserError(f"{file}: about: is invalid ({problems(error)}): {_REMEDY}") from error


def load_experiments(folder: Path) -> list[Experiment]:
    """Read all experiments of a folder, sorted by table (experiments of no table last) and file name.

    Raises:
        UserError: a block is invalid, or two files have different titles for the same table.
    """
    files = sorted(folder.glob("*.yaml"), key=lambda file: natural_order(file.stem))
    if not files:
        raise UserError(f"{folder} contains no .yaml file: pass the folder of the experiments as --experiments")
    experiments = [read_experiment(file) for file in files]
    first_of: dict[str | None, Experiment] = {}
    for experiment in experiments:
        first = first_of.setdefault(experiment.about.table, experiment)
        if experiment.about.table is not None and _heading(experiment) != _heading(first):
            raise UserError(
                f"{experiment.file}: about.title '{experiment.about.title}' differs from '{first.about.title}' in "
                f"{first.file.name}, or only one of them has a `paper:` part: make all experiments of "
                f"{first.about.table} the same"
            )
    return sorted(experiments, key=_table_order)  # stable: files stay in order


def _heading(experiment: Experiment) -> tuple[str, bool]:
    return experiment.about.title, experiment.about.paper is not None


def _table_order(experiment: Experiment) -> tuple[bool, bool, list[tuple[int, str]]]:
    """Return a key that sorts tables before figures, and these before experiments of no table."""
    table = experiment.about.table or ""
    return experiment.about.table is None, table.startswith("figure"), natural_order(table)


def by_table(experiments: Sequence[Experiment]) -> dict[str | None, list[Experiment]]:
    """Return the experiments of each table, None for those of no table."""
    tables: dict[str | None, list[Experiment]] = {}
    for experiment in experiments:
        tables.setdefault(experiment.about.table, []).append(experiment)
    return tables


def natural_order(text: str) -> list[tuple[int, str]]:
    """Return a key that sorts zigzag2 before zigzag10, and "table 1" before "table 1x"."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", text) if part]
