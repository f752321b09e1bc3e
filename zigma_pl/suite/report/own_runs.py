"""Experiments and runs that are not in experiments/: records of other configs, and log folders without a record."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from zigma_pl.core.errors import UserError
from zigma_pl.suite.report.charts import Chart, Series, line_chart
from zigma_pl.suite.report.curves import CSV_FILE, EVENTS, TAGS, Points, read_curves, resumed_from, shortened
from zigma_pl.suite.report.experiments import About, Experiment, experiment_name, natural_order, read_config
from zigma_pl.suite.report.results import RecordFile

STEPS = "steps"


@dataclass(frozen=True)
class OwnExperiment(Experiment):
    """An experiment of another folder, or one known by its records only.

    file: its config, or that of a run, which may be missing.
    own_name: its name in the records.
    """

    own_name: str

    @property
    def name(self) -> str:
        """Name in the records."""
        return self.own_name

    @property
    def command(self) -> str:
        """Command that trains it."""
        return f"python -m zigma_pl fit --config {self.file}"


@dataclass(frozen=True)
class LoggedRun:
    """A run without a record.

    folder: its log folder.
    group: the folder of all runs of its experiment, relative to the folder of all logs.
    curves: its losses over steps, by tag.
    """

    folder: Path
    group: str
    curves: dict[str, Points]

    @property
    def name(self) -> str:
        """Group and version, such as "digits/version_0"."""
        return f"{self.group}/{self.folder.name}"

    def last(self, tag: str) -> tuple[float, float] | None:
        """Return the last step and value of a curve."""
        points = self.curves.get(tag)
        return points[-1] if points else None


def with_own(
    experiments: Sequence[Experiment], configs: Sequence[Path], results: Sequence[RecordFile]
) -> list[Experiment]:
    """Return the experiments with those of other configs, and those known by their records only.

    Args:
        experiments: those of the tables.
        configs: files of other experiments; their `about:` block is optional.
        results: all records.

    Raises:
        UserError: a config cannot be read, or has the name of another experiment.
    """
    found = {experiment.name: experiment for experiment in experiments}
    for config in configs:
        about = read_config(config).about
        known = found.setdefault(config.stem, OwnExperiment(config, about, config.stem))
        if known.file.resolve() != config.resolve():
            raise UserError(f"--config {config}: {known.file} has the same name: rename one of them")
    for result in results:
        if result.experiment not in found:
            file = result.file.with_suffix("") / "composed.yaml"  # written by `ablations`
            found[result.experiment] = OwnExperiment(file, About(title=result.experiment), result.experiment)
    return list(found.values())


def logged_runs(logs: Path, results: Sequence[RecordFile], ignored: Collection[str]) -> list[LoggedRun]:
    """Return the runs in a folder of logs that logged a loss and have no record, nor a later run that resumed them.

    Args:
        logs: folder of all logs.
        results: all records.
        ignored: names of experiments to leave out.
    """
    folders = {path.parent for name in (EVENTS, CSV_FILE) for path in logs.rglob(name)}
    shown = {run.resolve() for result in results for run in _runs_of(result)}
    resumed = {earlier.resolve() for folder in folders for earlier in resumed_from(folder)}
    runs = []
    for folder in folders:
        if folder.resolve() in shown | resumed or experiment_name(folder.parent.name) in ignored:
            continue
        curves = {tag: points for tag, points in read_curves(folder).items() if tag in TAGS}
        if curves:
            runs.append(LoggedRun(folder, folder.relative_to(logs).parent.as_posix(), curves))
    return sorted(runs, key=lambda run: (run.group, natural_order(run.folder.name)))


def _runs_of(result: RecordFile) -> Iterator[Path]:
    folder = result.record.training.get("log_folder")
    if folder:
        yield result.locate(folder)
        yield from resumed_from(result.locate(folder))


def charts_of(runs: Sequence[LoggedRun]) -> list[Chart]:
    """Return the losses of runs of the same experiment over steps."""
    charts = []
    for tag, title in zip(TAGS, ("Training loss", "Validation loss"), strict=True):
        series = [Series(run.folder.name, index, shortened(run.curves.get(tag, []))) for index, run in enumerate(runs)]
        charts.append(line_chart(title, STEPS, title.lower(), series))
    return [chart for chart in charts if chart is not None]
