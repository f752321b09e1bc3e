"""Charts of a table at one scale: losses and scores over samples seen, scores by experiment, loss by time."""

from collections.abc import Callable

from zigma_pl.suite.report.charts import Chart, Series, dot_chart, line_chart
from zigma_pl.suite.report.curves import Points, averaged, read_curves
from zigma_pl.suite.report.results import RecordCollection, RecordFile
from zigma_pl.suite.report.scores import in_order, score_label
from zigma_pl.suite.report.tables import View

SAMPLES_SEEN = "samples seen"
NUM_PARTS = 100  # points of a long training curve, each the mean of a part

CurveOf = Callable[[RecordFile], Points]


def charts(view: View, results: RecordCollection) -> list[Chart]:
    """Return the charts for which there are data."""
    read = {result.file: _curves(result) for line in view.lines for result in line.results}

    def logged(tag_name: str) -> CurveOf:
        return lambda result: averaged(over_samples(result, read[result.file].get(tag_name, [])), NUM_PARTS)

    drawn = [
        line_chart("Training loss", SAMPLES_SEEN, "training loss", _series(view, logged("train/loss"))),
        line_chart("Validation loss", SAMPLES_SEEN, "validation loss", _series(view, logged("validation/loss"))),
        line_chart(
            "Validation loss by time", "t, from data (0) to noise (1)", "validation loss", _series(view, _loss_by_time)
        ),
    ]
    names = in_order([name for line in view.lines for result in line.results for name in result.record.scores])
    drawn += [_score_chart(view, results, name) for name in names]
    return [chart for chart in drawn if chart is not None]


def _series(view: View, curve_of: CurveOf) -> list[Series]:
    """Return one line for each record of each experiment."""
    return [
        Series(
            line.experiment.label if result.seed is None else f"{line.experiment.label}, seed {result.seed}",
            index,
            curve_of(result),
        )
        for index, line in enumerate(view.lines)
        for result in line.results
    ]


def _score_chart(view: View, results: RecordCollection, name: str) -> Chart | None:
    """Return a score over samples seen if a training was scored more than once, else by experiment."""
    assert view.scale is not None
    title = score_label(name).heading
    histories: list[Series] = []
    for index, line in enumerate(view.lines):
        history = results.history(line.experiment.name, view.scale)
        for seed in dict.fromkeys(result.seed for result in history):
            of_seed = [result for result in history if result.seed == seed]
            points = [(float(result.samples_seen or 0), result.value(name)) for result in of_seed]
            histories.append(Series(line.experiment.label, index, [(x, y) for x, y in points if y is not None]))
    if any(len({x for x, _ in history.points}) > 1 for history in histories):
        return line_chart(title, SAMPLES_SEEN, title, histories)
    rows = []
    for index, line in enumerate(view.lines):
        values = [result.value(name) for result in line.results]
        rows.append(Series(line.experiment.label, index, [(value, 0.0) for value in values if value is not None]))
    alone = sum(len(row.points) for row in rows) < 2  # one number is enough in the table
    return None if alone else dot_chart(f"{title} by experiment", title, rows)


def _loss_by_time(result: RecordFile) -> Points:
    score = result.record.scores.get("validation_loss")
    bins = (score.by_time if score else None) or []
    return [((index + 0.5) / len(bins), value) for index, value in enumerate(bins) if value is not None]


def _curves(result: RecordFile) -> dict[str, Points]:
    folder = result.record.training.get("log_folder")
    return read_curves(result.locate(folder)) if folder else {}


def over_samples(result: RecordFile, points: Points) -> Points:
    """Return a curve over samples seen; empty if the record has no number of samples or steps."""
    steps = result.record.training.get("steps")
    if not steps or not result.samples_seen:
        return []
    return [((step + 1) * result.samples_seen / steps, value) for step, value in points]  # Lightning counts from 0
